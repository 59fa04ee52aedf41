from __future__ import annotations

import subprocess
import sys

import pytest

from sa_proletarian import cli, demo


def test_it_says_its_version(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("sa-proletarian ")


def test_without_a_command_it_says_what_there_is(capsys):
    assert cli.main([]) == 2
    assert "demo" in capsys.readouterr().err


def test_an_unknown_command_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["dance"])
    assert end.value.code == 2
    assert "dance" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "plain"), [(["demo"], False), (["demo", "--plain"], True)])
def test_demo_gets_its_option_and_gives_the_exit_code(monkeypatch, arguments, plain):
    asked = []
    monkeypatch.setattr(demo, "main", lambda **options: asked.append(options) or 7)
    assert cli.main(arguments) == 7
    assert asked == [{"plain": plain}]


def test_ctrl_c_is_130_without_a_traceback(monkeypatch, capsys):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "main", interrupted)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == ""


def test_a_reader_that_goes_away_is_no_traceback():
    script = (
        "from sa_proletarian import cli, demo\n"
        "demo.main = lambda plain: print('x' * 1_000_000) or 0\n"
        "raise SystemExit(cli.main(['demo']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
