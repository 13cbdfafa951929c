"""Instructions of an emulated ARM core: the arithmetic, what is said without it, and the real thing."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from amc.errors import UserError
from amc.graph import trace_graph
from amc.targets import get_target
from amc.targets.arm import counts, debian, emulator, guest, preparation
from amc.targets.arm.cores import CORES, CORTEX_A53, CORTEX_A76, write_system_files
from amc.targets.arm.installation import PLUGIN_SOURCE, SETUP_COMMAND, Installation, recipe
from amc.targets.arm.target import DECLARED, ArmInstructionsTarget, default_installation, timings
from amc.targets.base import Target
from amc.targets.calibration import Profile
from amc.targets.profiling import remember
from scripts import setup_arm
from scripts.cli import exit_code
from tests.test_export import ResNet, images, prepared, quantize

PREPARED = default_installation()
needs_emulator = pytest.mark.skipif(not PREPARED.is_ready(), reason=f"not prepared: {SETUP_COMMAND}")


def log(*sections: tuple[int, list[int]]) -> str:
    """A log in which the inferences of some sections take these instructions, other lines between."""
    now, lines = 1000, ["a line of something else"]
    for section, durations in sections:
        lines.append(f"section {section}")
        for duration in durations:
            lines += [f"mark {now}", f"mark {now + duration}"]
            now += duration + 77  # what happens between two inferences does not count
    return "\n".join(lines)


EMPTY = (0, [90, 60, 50, 50, 50])


def test_the_marks_own_cost_is_subtracted():
    text = log(EMPTY, (1, [900, 450, 450, 450, 450]), (2, [700, 250, 250, 250, 250]))
    assert counts.inferences(text, 2) == [(400, 400), (200, 200)]


def test_a_round_counts_its_smallest_inference():
    assert counts.inferences(log(EMPTY, (1, [900, 453, 450, 453, 453])), 1) == [(400, 400)]


@pytest.mark.parametrize("spans", [[EMPTY], [EMPTY, (1, [900, 450])], [(1, [900, 450, 450, 450, 450])], []])
def test_a_log_without_all_marks_is_refused(spans):
    with pytest.raises(UserError, match="lacks the marks"):
        counts.inferences(log(*spans), 1)


def test_marks_outside_of_all_sections_do_not_count():
    text = "mark 10\nmark 20\n" + log(EMPTY, (1, [900, 450, 450, 450, 450])) + "\nmark 9999999"
    assert counts.inferences(text, 1) == [(400, 400)]


def test_timings_are_millions_relative_to_the_first_file():
    first, second = timings([(4_000_000, 4_000_000), (1_000_003, 1_000_003)])
    assert (first.best, first.ratio, first.reliable, first.attempts) == (4.0, 1.0, True, 1)
    assert (second.best, second.ratio, second.rounds) == (1.000003, 1_000_003 / 4e6, (1.000003, 1.000003))


def test_rounds_that_differ_by_one_instruction_are_unreliable():
    assert [timing.reliable for timing in timings([(10, 10), (10, 11)])] == [True, False]


def test_guest_and_plugin_agree_on_the_first_section():
    source = PLUGIN_SOURCE.read_text()
    assert int(re.search(r"#define SECTION (0x\w+?)u", source)[1], 16) == guest.SECTION
    assert counts.WARM_UP + counts.ROUND < guest.RUNS < guest.EMPTY_RUNS


def test_the_cores_are_told_apart_by_what_linux_says_of_them(tmp_path):
    for core in CORES:
        write_system_files(core, tmp_path / core.name)
    large, small = ((tmp_path / core.name / "proc/cpuinfo").read_text() for core in (CORTEX_A76, CORTEX_A53))
    assert "0xd0b" in large and "asimddp" in large and "0xd03" in small and "asimddp" not in small
    assert (tmp_path / "cortex-a53/sys/devices/system/cpu/possible").read_text() == "0\n"


@pytest.mark.parametrize(
    ("name", "core"), [("arm-instructions", CORTEX_A76), ("arm-instructions-a53", CORTEX_A53)]
)
def test_both_cores_are_registered(name, core):
    target = get_target(name)
    assert isinstance(target, ArmInstructionsTarget) and target.core is core and target.name == name
    assert (target.unit, target.file_suffix, target.width_multiple) == ("M instructions", ".tflite", 8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"no model")
    return path


def test_a_remembered_calibration_of_a_core_replaces_the_declared_profile(tmp_path, monkeypatch):
    monkeypatch.setenv("AMC_CACHE_DIR", str(tmp_path / "cache"))
    unprepared = ArmInstructionsTarget(CORTEX_A53, Installation(tmp_path / "none"))
    assert unprepared.profile is DECLARED and DECLARED.source.startswith("declared")
    prepared = marked(tmp_path / "arm", recipe())
    found = Profile(width_multiple=4, fast_bits=(32,), source="calibration of a day")
    remember(ArmInstructionsTarget(CORTEX_A53, prepared), found)
    assert ArmInstructionsTarget(CORTEX_A53, prepared).profile == found
    other = ArmInstructionsTarget(CORTEX_A76, prepared)
    assert other.profile is DECLARED
    other.adopt(found)
    assert other.width_multiple == 4


USES = {
    "runtime_version": lambda target, model: target.runtime_version,
    "measure": lambda target, model: target.measure([model]),
    "run": lambda target, model: target.run(model, np.zeros((1, 3, 8, 8))),
}


@pytest.mark.parametrize("use", USES)
def test_without_preparation_one_sentence_names_the_script(use, model, tmp_path):
    target = ArmInstructionsTarget(CORTEX_A76, Installation(tmp_path / "arm"))
    with pytest.raises(UserError, match=rf"^[^.]* not prepared in \S+: run {SETUP_COMMAND}\.$"):
        USES[use](target, model)


def marked(path: Path, recipe: str) -> Installation:
    """A directory that looks prepared."""
    path.mkdir()
    (path / "prepared.json").write_text(
        f'{{"recipe": "{recipe}", "versions": {{"qemu-user": "7", "libc6": "2"}}}}'
    )
    return Installation(path)


def test_what_another_version_prepared_is_not_used(tmp_path):
    installation = marked(tmp_path / "arm", "another")
    assert not installation.is_ready()
    with pytest.raises(UserError, match=f"another version of AMC: run {SETUP_COMMAND}"):
        installation.versions()


def test_core_and_libraries_are_part_of_the_version(tmp_path):
    installation = marked(tmp_path / "arm", recipe())
    versions = [ArmInstructionsTarget(core, installation).runtime_version for core in CORES]
    assert versions[0] == "2.3.0 on cortex-a76, qemu 7, libc 2, counting 1" and "cortex-a53" in versions[1]


def test_what_the_guest_says_last_is_the_reason(tmp_path, monkeypatch):
    """A stand-in for the emulator that ends as the guest does when LiteRT refuses a file."""
    installation = marked(tmp_path / "arm", recipe())
    said = f"{guest.REASON} Op builtin_code out of range.\n{guest.REFUSED} 1"
    code = f"import sys; sys.stderr.write({said!r}); sys.exit(1)"
    monkeypatch.setattr(emulator, "command", lambda *_: [sys.executable, "-c", code])
    files = [tmp_path / "a.tflite", tmp_path / "b.tflite"]
    for file in files:
        file.touch()
    with pytest.raises(UserError, match=r"cannot use .*b\.tflite: Op builtin_code out of range\.$") as error:
        ArmInstructionsTarget(CORTEX_A76, installation).measure(files)
    assert "a.tflite" not in str(error.value)


def test_an_emulator_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(emulator, "command", lambda *_: ["sleep", "30"])
    with pytest.raises(UserError, match="cortex-a53 did not end within 0 s"):
        emulator.emulate(Installation(tmp_path), CORTEX_A53, tmp_path, [], timeout_s=0.05)


def test_versions_come_from_the_names_of_the_archives():
    names = ["zlib1g_1%3a1.2.13.dfsg-1_arm64.deb", "libc6_2.36-9+deb12u14_arm64.deb"]
    assert debian.versions([Path(name) for name in names]) == {
        "zlib1g": "1:1.2.13.dfsg-1",
        "libc6": "2.36-9+deb12u14",
    }


def setup(*arguments: object) -> int:
    return exit_code(setup_arm.main, [str(argument) for argument in arguments])


def test_a_dry_run_explains_every_step_and_does_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a dry run starts nothing"))
    assert setup("--out", tmp_path / "arm", "--dry-run") == 0
    said = capsys.readouterr().out
    for word in (
        "1/7",
        "7/7",
        "qemu-user",
        "python3.11-minimal",
        "ai-edge-litert==2.3.0",
        "cortex-a53",
        "gcc",
    ):
        assert word in said
    assert list(tmp_path.iterdir()) == []


def test_a_second_preparation_finds_everything(tmp_path, capsys):
    marked(tmp_path / "arm", recipe())
    assert setup("--out", tmp_path / "arm") == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(("program", "package"), preparation.TOOLS.items())
def test_a_missing_program_is_named_with_its_package(program, package, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(preparation.shutil, "which", lambda name: None if name == program else f"/bin/{name}")
    assert setup("--out", tmp_path / "arm") == 2
    assert re.fullmatch(
        rf"error: [^\n]*needs {program}: .*apt-get install {package}\.\n", capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_someone_else_is_left_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(preparation.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(debian, "KEYRING", PLUGIN_SOURCE)
    (tmp_path / "thesis.txt").write_text("mine")
    assert setup("--out", tmp_path) == 2
    assert "give another --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_preparation_that_fails_midway_leaves_nothing_that_looks_finished(tmp_path, capsys, monkeypatch):
    def fail(*_: object) -> None:
        raise UserError("gcc could not compile the counting plugin: no space left.")

    nothing = {name: lambda *_: None for name in ("_unpack_host", "_unpack_guest", "_unpack_wheels")}
    for name, stand_in in {**nothing, "_describe_cores": fail}.items():
        monkeypatch.setattr(preparation.Preparation, name, stand_in)
    monkeypatch.setattr(debian.PrivateApt, "update", lambda self: None)
    monkeypatch.setattr(setup_arm, "check_host", lambda target: None)
    assert setup("--out", tmp_path / "arm") == 2
    assert "no space left" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Target, list[Path]]]:
    """A small residual network in fp32 and in int8, as files for the target."""
    folder = tmp_path_factory.mktemp("arm")
    files = [folder / "fp32.tflite", folder / "int8.tflite"]
    target = get_target("arm-instructions")
    for file, net in zip(files, (prepared(ResNet), quantize(prepared(ResNet), 8)), strict=True):
        target.export(trace_graph(net), images(1), file)
    yield target, files


@pytest.mark.slow
@needs_emulator
def test_counts_repeat_to_the_digit_in_another_process_and_order(pair):
    target, files = pair
    forwards, backwards = target.measure(files), target.measure(files[::-1])
    assert [timing.best for timing in forwards] == [timing.best for timing in backwards[::-1]]
    assert [timing.rounds for timing in forwards] == [timing.rounds for timing in backwards[::-1]]
    assert all(timing.reliable for timing in forwards + backwards)


@pytest.mark.slow
@needs_emulator
def test_int8_needs_fewer_instructions_where_the_core_has_the_dot_product(pair):
    _, files = pair
    large, small = (ArmInstructionsTarget(core).measure(files) for core in (CORTEX_A76, CORTEX_A53))
    assert large[1].ratio < 0.6 and large[1].ratio < 0.8 * small[1].ratio
    assert all(slow.best > 1.1 * fast.best for slow, fast in zip(small, large, strict=True))


@pytest.mark.slow
@needs_emulator
def test_the_emulated_outputs_are_those_of_torch(pair):
    target, files = pair
    net = trace_graph(prepared(ResNet))
    with torch.no_grad():
        expected = net(images(3)).numpy()
    np.testing.assert_allclose(target.run(files[0], images(3).numpy()), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@needs_emulator
def test_a_broken_file_is_refused_in_one_sentence(pair, model):
    target, files = pair
    with pytest.raises(UserError, match=r"cannot use \S+model\.tflite: [^\n]+\.$"):
        target.measure([files[0], model])
