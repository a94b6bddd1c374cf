"""Options of the scripts: what is wrong is one sentence, what is right has its type."""

import re
import sys
from enum import Enum

import pytest

from mega.config import OPTIONS, TTA, InputError, Mode, Part, as_option, compose, file_as_testset, main, quote_texts

_WRONG = [
    ("demo", "sampels=3", r"sampels is not an option of .*; did you mean samples\?"),
    ("demo", "+foo=1", r"foo is not an option of demo\.py; choose from .*boxes, .*weights\."),
    ("demo", "mode=guess", r"mode=guess must be deterministic or stochastic\."),
    ("demo", "tta=twice", r"tta=twice must be none, flip, shift, flip_shift or null\."),
    ("demo", "samples=many", r"samples=many must be a whole number of at least 1\."),
    ("demo", "samples=2.5", r"samples=2\.5 must be a whole number of at least 1\."),
    ("demo", "samples=true", r"samples=true must be a whole number of at least 1\."),
    ("demo", "samples=0", r"samples=0 must be a whole number of at least 1\."),
    ("demo", "samples=null", r"samples=null must be a whole number of at least 1\."),
    ("demo", "seed=-1", r"seed=-1 must be a whole number of at least 0\."),
    ("demo", "temperature=-1", r"temperature=-1 must be a number of at least 0\."),
    ("demo", "temperature=nan", r"temperature=nan must be a number of at least 0\."),
    ("demo", "temperature=inf", r"temperature=inf must be a number of at least 0\."),
    ("demo", "focal=0", r"focal=0 must be default, a number above 0 or null\."),
    ("demo", "compile=maybe", r"compile=maybe must be true or false\."),
    ("demo", "detector=eyes", r"detector=eyes is not known; choose from boxes, movenet, torchvision, whole_image\."),
    ("demo", "samples=[", r"samples=\[ must be a whole number of at least 1\."),
    ("demo", "samples=2,3", r"samples=2,3 must be a whole number of at least 1\."),
    ("demo", "photos", r"photos cannot be read: an option is written NAME=VALUE"),
    ("generate", "given=tail", r"given=tail must be a list of head \| torso"),
    ("generate", "export=stl", r"export=stl must be glb or obj\."),
    ("test_mega", "pictures=some", r"pictures=some must be all or a whole number of at least 0\."),
    ("test_mega", "pictures=-1", r"pictures=-1 must be all or a whole number of at least 0\."),
    ("test_mega", "pictures=true", r"pictures=true must be all or a whole number of at least 0\."),
    ("test_mega", "pictures=null", r"pictures=null must be all or a whole number of at least 0\."),
    ("test_mega", "rule=best", r"rule=best must be default or published\."),
    ("train_mega", "mode=fit", r"mode=fit must be train"),
    ("train_mega", "mode=test", r"mode=test must be train or export\."),
    ("train_mega", "training.schedule=linear", r"training\.schedule=linear must be step or published\."),
    ("train_mega", "training.reprojection=soft", r"training\.reprojection=soft must be argmax or expected\."),
    ("train_mega", "training.rate=1", r"training\.rate is not an option of training; choose from all_masked, "),
    ("train_mega", "export_dtype=float8", r"export_dtype=float8 must be float32 or float16\."),
    ("train_mega", "data.batch_size=abc", r"data\.batch_size=abc must be a whole number\."),
    ("train_mega", "data.batchsize=3", r"data\.batchsize is not an option of data; did you mean batch_size\?"),
    ("train_mega", "+data.batchsize=3", r"data\.batchsize is not an option of SyntheticImageData; did you"),
    ("train_mega", "model.dim=wide", r"model\.dim=wide must be a whole number\."),
    ("train_mega", "trainer.max_steps=1.5", r"trainer\.max_steps=1\.5 must be a whole number\."),
    ("train_mega", "crop.sise=3", r"crop\.sise is not an option of crop; did you mean size\?"),
    ("train_mega", "crop.size=0", r"crop\.size=0 must be a whole number of at least 1\."),
    ("prepare_data", "dataset=4dpw", r"dataset=4dpw is not known; choose from 3dpw, bedlam_check"),
    ("make_synthetic", "splits={test: few}", r"splits=\{test: few.*\} must be a mapping to a whole number\."),
    ("latent_analysis", "bodies=1", r"bodies=1 must be a whole number of at least 2\."),
]


def started(monkeypatch, capsys, script: str, *words: str, task=lambda config: None, rewrite=None) -> tuple[int, str]:
    """Exit status and stderr of a script that runs `task`."""
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *words])
    with pytest.raises(SystemExit) as ended:
        main(script, rewrite)(task)()
    code = ended.value.code
    said = capsys.readouterr().err
    return (1, f"{said}{code}") if isinstance(code, str) else (code, said)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


@pytest.mark.parametrize(("script", "word", "sentence"), _WRONG, ids=lambda value: str(value)[:30])
def test_a_wrong_option_is_one_sentence(monkeypatch, capsys, script, word, sentence) -> None:
    status, said = started(monkeypatch, capsys, script, word, task=lambda config: pytest.fail("was started"))
    assert status == 1
    assert re.match(sentence, said), said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize("error", [FileNotFoundError("no file"), ValueError("this is wrong"), InputError("no")])
def test_an_error_that_can_be_corrected_is_its_message(monkeypatch, capsys, error) -> None:
    def fail(config) -> None:
        raise error

    assert started(monkeypatch, capsys, "demo", task=fail) == (1, f"{error}\n")


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["demo.py"])
    with pytest.raises(ZeroDivisionError):
        main("demo")(lambda config: 1 / 0)()


def test_the_exit_status_is_the_task_s_and_the_largest_of_several(monkeypatch, capsys, tmp_path) -> None:
    assert started(monkeypatch, capsys, "demo", task=lambda config: 3)[0] == 3
    words = ("--multirun", "seed=0,2,1", f"hydra.sweep.dir={tmp_path}")
    assert started(monkeypatch, capsys, "demo", *words, task=lambda config: config.seed)[0] == 2


def test_options_have_their_types() -> None:
    config = compose("demo", ["mode=stochastic", "tta=flip_shift", "temperature=1", "decode=null"])
    assert config.mode is Mode.stochastic
    assert config.tta is TTA.flip_shift
    assert f"{config.mode}" == "stochastic"
    assert isinstance(config.temperature, float)
    assert config.decode is None
    assert compose("generate", ["given=head"]).given == [Part.head]
    assert compose("test_mega", ["protocol=mega", "pictures=all"]).pictures == "all"


def test_a_choice_from_a_config_group_is_checked_like_an_option() -> None:
    with pytest.raises(InputError, match=r"detector\.threshold=high must be a number"):
        compose("demo", ["detector=torchvision", "detector.threshold=high"])
    with pytest.raises(InputError, match=r"model\.dim=null must be a whole number"):
        compose("train_mega", ["model.dim=null"])


@pytest.mark.parametrize(
    ("script", "override"),
    [
        ("demo", "model.cam_range=2.0"),
        ("demo", "body=smplh"),
        ("generate", "model.dim=64"),
        ("test_mega", "crop.size=64"),
    ],
)
def test_what_would_have_no_effect_is_refused(script, override) -> None:
    with pytest.raises(InputError, match=f"{override} would have no effect: {script}.py takes the model"):
        compose(script, ["experiment=mega_vit", *(["testset=3dpw"] if script == "test_mega" else []), override])


@pytest.mark.parametrize("script", OPTIONS)
def test_defaults_fit_their_types(script) -> None:
    config = compose(script)
    for name, value in config.items():
        assert not isinstance(value, Enum) or f"{value}" == value, name


def test_words_and_files_are_short_for_options(monkeypatch, capsys, tmp_path) -> None:
    found = []
    started(monkeypatch, capsys, "prepare_data", "emdb", task=found.append, rewrite=as_option("dataset"))
    assert found[-1].dataset.part == "emdb1"
    (tmp_path / "a,b=c").mkdir()
    words = ("names=[x,y]", "a,b=c", "it's 2")
    started(monkeypatch, capsys, "compare_reports", *words, task=found.append, rewrite=as_option("reports", many=True))
    assert found[-1].reports == ["a,b=c", "it's 2"]
    assert found[-1].names == ["x", "y"]
    started(monkeypatch, capsys, "test_mega", "testset=my set.npz", task=found.append, rewrite=file_as_testset)
    assert found[-1].testset.path == "my set.npz"


_NAMES = (
    *("IMG (1).jpg", "Fotos_José", "日本.jpg", "a b", " a ", "it's", 'say "hi"', "a,b=c", "[1].jpg", "{x}", "x=1"),
    *(
        "2024",
        "007",
        "1e3",
        "true",
        "null.jpg",
        "nan",
        "a\\b",
        "back\\",
        'x\\"y',
        "${x}.jpg",
        "$HOME",
        "a:b",
        "#1",
        "5%",
    ),
)
_OPTIONS = ("input", "output", "boxes", "weights", "tokenizer_weights")


@pytest.mark.parametrize("exists", [True, False], ids=["there", "not there"])
def test_a_path_is_what_the_shell_passed(tmp_path, exists) -> None:
    names = [name for name in _NAMES if exists or "${" not in name]  # Hydra's reference to another option
    for name in names if exists else ():
        (tmp_path / name).touch()
    for start in range(0, len(names), len(_OPTIONS)):
        paths = dict(zip(_OPTIONS, names[start:], strict=False))
        config = compose("demo", quote_texts([f"{option}={name}" for option, name in paths.items()], "demo"))
        assert {option: config[option] for option in paths} == paths
    for name in ("007", "a b", "[1].jpg"):
        words = [f"data.cache={name}", f"data.folder={name}", f"backbone.weights={name}", "data.batch_size=3"]
        config = compose("train_mega", quote_texts(words, "train_mega"))
        assert (config.data.cache, config.data.folder, config.backbone.weights) == (name,) * 3
        assert config.data.batch_size == 3
    assert compose("test_mega", quote_texts(["pictures=3"], "test_mega")).pictures == 3


def test_the_home_folder_is_known_in_quotes_too(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    found = []
    started(monkeypatch, capsys, "demo", "input=~/x.jpg", "output=~", task=found.append)
    assert (found[0].input, found[0].output) == (str(tmp_path / "x.jpg"), str(tmp_path))


def test_one_name_is_a_list_of_one(monkeypatch, capsys) -> None:
    found = []
    started(monkeypatch, capsys, "prepare_data", "dataset=3dpw", "dataset.splits=test", task=found.append)
    assert found[0].dataset.splits == ["test"]
    started(monkeypatch, capsys, "prepare_data", "dataset=bedlam_check", "dataset.annotations=a b", task=found.append)
    assert found[1].dataset.annotations == ["a b"]


def test_each_job_of_a_sweep_has_a_folder_and_all_are_run(monkeypatch, capsys, tmp_path) -> None:
    outputs = []

    def task(config) -> None:
        outputs.append(config.output)
        if config.samples == 3:
            raise ValueError("the second job fails")

    words = ("--multirun", "mode=stochastic", "samples=2,3,4", f"hydra.sweep.dir={tmp_path}")
    assert started(monkeypatch, capsys, "demo", *words, task=task) == (1, "the second job fails\n")
    assert outputs == [f"demo_out/{i}_samples={i + 2}" for i in range(3)]
