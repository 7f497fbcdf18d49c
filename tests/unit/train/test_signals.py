"""Signals are noted instead of ending the process; a second Ctrl-C ends it."""

from __future__ import annotations

import signal

import pytest

from gcvideo.train.signals import StopSignals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_noted_and_the_old_handler_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stop:
        items = stop.unless_received(iter([1, 2, 3]))
        assert next(items) == 1
        signal.raise_signal(number)
        assert list(items) == []
        assert (stop.received, stop.interrupted) == (number.name, True)
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_ends_the_process() -> None:
    with StopSignals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
