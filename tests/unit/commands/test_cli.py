"""The command line: cheap to start, one-line errors, exit code 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gcvideo.cli import commands_below, main
from gcvideo.errors import VideoError

ROOT = Path(__file__).resolve().parents[3]


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_import_is_cheap_and_loads_no_decoder():
    code = (
        "import sys, gcvideo, gcvideo.cli; print(sorted({'torch', 'decord', 'av', 'torchvision'} & set(sys.modules)))"
    )
    assert python("-c", code).stdout.strip() == "[]"


@pytest.mark.parametrize("command", commands_below(""))
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    assert f"gcvideo {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["benchmark", "analyze", "prepare"])
def test_every_subcommand_explains_itself(command, capsys):
    names = commands_below(command)
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    assert all(f"  {name}" in said for said in [capsys.readouterr().out] for name in names)
    for name in names:
        with pytest.raises(SystemExit) as done:
            main([command, name, "--help"])
        assert done.value.code == 0
        assert f"gcvideo {command} {name}" in capsys.readouterr().out
    for wrong in ([command], [command, "nothing"]):
        with pytest.raises(SystemExit) as done:
            main(wrong)
        assert done.value.code == 2


def test_the_package_is_a_command():
    assert python("-m", "gcvideo", "--version").stdout.startswith("gcvideo ")


def test_every_tool_is_a_command_and_the_other_way_round():
    tools = {path.stem for path in (ROOT / "tools").glob("*.py")}
    assert tools == set(commands_below("")) - {"demo"}


@pytest.mark.parametrize("words", [["trian"], ["fit", "videos", "--minuts", "3"], ["prepare", "indx"]])
def test_a_mistake_in_the_words_is_one_line_and_exit_code_2(words, capsys):
    with pytest.raises(SystemExit) as done:
        main(words)
    assert done.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.endswith("--help shows all\n")


def test_a_user_error_is_one_line_and_exit_code_2(tmp_path):
    config = tmp_path / "bad.yaml"
    config.write_text("model: {dept: 18}")
    done = python("tools/train.py", str(config))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "unknown key model.dept; did you mean 'model.depth'?" in done.stderr


def test_a_video_error_survives_pickling():
    import pickle

    error = pickle.loads(pickle.dumps(VideoError("a.mp4", "no video stream")))
    assert (error.path, error.reason, str(error)) == ("a.mp4", "no video stream", "a.mp4: no video stream")


def test_overrides_may_stand_after_options(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("name: x")
    assert main(["train", str(tmp_path / "run.yaml"), "--overwrite", "optim.lrr=3"]) == 2
    assert "unknown key optim.lrr" in capsys.readouterr().err


def test_names_that_begin_with_a_dash_stand_behind_two(tmp_path, capsys):
    missing = tmp_path / "no.pt"
    assert main(["predict", "--checkpoint", str(missing), "--", "-rf.mp4", "a.mp4"]) == 2
    assert capsys.readouterr().err.startswith(f"gcvideo predict: {missing}: ")


def test_a_terminal_that_lacks_a_letter_gets_its_number():
    code = "from gcvideo.cli import main; main(['train', 'nowhere.yaml']); print('\\u89c6\\udcff')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        timeout=120,
        cwd=ROOT,
    )
    assert done.stdout.split() == [rb"\u89c6\udcff"]


def test_under_torchrun_one_process_speaks_for_all(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", str(tmp_path / "nowhere.yaml")]) == 2
    assert capsys.readouterr().err == ""


def test_a_bug_report_has_decoders_devices_cores_and_limits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "PyTorch version: 2\nVulnerability: x")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(12)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    assert main(["env", "--json", str(tmp_path / "env.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in (
        "torch",
        "decoder pyav",
        "decoder decord",
        "/dev/shm",
        "open files, now and at most",
        "memory",
    ):
        assert any(line.startswith(f"{name}: ") for line in lines), name
    assert lines[-1] == "PyTorch version: 2"
    assert json.loads((tmp_path / "env.json").read_text())["cores for this process"] == 2
