"""From a folder of videos to a tested classifier, with every choice explained: ``gcvideo fit``.

=============  =====================================================================================================
``look``       what lies there: classes, lengths, rates, sizes, damaged videos, copies
``split``      groups of videos of one source, and splits and folds that keep them whole
``plan``       choices with reasons, which become the config of the run
``run``        trials, training, tests, and the verdict: how good it is, what looks wrong, what to do next
=============  =====================================================================================================
"""
