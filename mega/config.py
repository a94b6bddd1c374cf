"""Typed options of the scripts, and the entry point that reads them.

A dataclass holds the options of one script: their types, ranges and defaults. `configs/SCRIPT.yaml` adds the groups
that the script chooses from (body, data, model, …). A wrong option ends a script with one sentence, see `main`.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from mega.console import print_anything
from mega.external_files import CONFIGS, as_on_disk
from mega.photos import InputError


class Limit(NamedTuple):
    """What a number must fulfil, in words and as a function."""

    words: str
    holds: Callable[[float], bool]


def at_least(low: int) -> Limit:
    """The smallest value that is allowed."""
    return Limit(f"of at least {low}", lambda value: value >= low)


Count = Annotated[int, at_least(1)]
Whole = Annotated[int, at_least(0)]
NonNegative = Annotated[float, at_least(0)]
Positive = Annotated[float, Limit("above 0", lambda value: value > 0)]

Mode = StrEnum("Mode", ["deterministic", "stochastic"])
TrainingMode = StrEnum("TrainingMode", ["train", "test", "export"])
ImageTrainingMode = StrEnum("ImageTrainingMode", ["train", "export"])  # test_mega.py measures image models
Resume = StrEnum("Resume", ["auto", "force"])
Decode = StrEnum("Decode", ["argmax", "soft"])
TTA = StrEnum("TTA", ["none", "flip", "shift", "flip_shift"])
Rule = StrEnum("Rule", ["default", "published"])
Precision = StrEnum("Precision", ["fp32", "bf16", "auto"])
Export = StrEnum("Export", ["glb", "obj"])
Dtype = StrEnum("Dtype", ["float32", "float16"])
Part = StrEnum("Part", ["head", "torso", "left_arm", "right_arm", "left_leg", "right_leg"])
ErrorProtocol = StrEnum("ErrorProtocol", ["coco17", "mega"])

_REPOSITORY = "checkpoint/anny_lite"


@dataclass
class PredictionOptions:
    """What every script has that predicts people with an image model."""

    weights: str = "anny_lite"  # a name (`mega.load`), a folder, or the file of an image model
    tokenizer_weights: str | None = None  # another tokenizer than that of the weights
    mode: Mode = Mode.deterministic  # stochastic adds samples to the deterministic prediction
    samples: Count = 25  # number of samples …
    steps: Count = 5  # … sampling steps …
    temperature: NonNegative = 1.0  # … temperature …
    seed: Whole = 0  # … and seed of the stochastic mode
    decode: Decode | None = None  # mesh of the most likely codes or of the mean codes; null: as the weights say
    tta: TTA | None = None  # test-time augmentation; null: as the weights say
    device: str = "auto"  # auto | cpu | cuda | cuda:N | mps, see `read_device`
    precision: Precision = Precision.fp32  # not auto: the numbers must not depend on the machine
    compile: bool = False  # torch.compile for backbone and transformer


@dataclass
class DemoOptions(PredictionOptions):
    input: str = "demo_data"  # folder, file or glob pattern
    output: str = "demo_out"  # folder of the results
    boxes: str | None = None  # JSON file; null: boxes.json of the input folder, if there is one
    # focal length, px; default: 1000/224 of the longer side of the picture; null: from the EXIF data if they have it
    focal: Annotated[Any, Literal["default"] | Positive | None] = None
    export: Export = Export.glb  # format of the meshes
    tighten_passes: Whole = 2  # passes that tighten the box of a whole picture around the prediction
    max_side: Count = 1024  # longer side of drawn pictures, px


@dataclass
class GenerateOptions:
    output: str = "generated"  # folder of the results
    tokenizer_weights: str = f"{_REPOSITORY}/tokenizer.safetensors"
    pretrained: str = f"{_REPOSITORY}/vqmae.safetensors"  # the masked transformer
    n: Count = 16  # number of bodies
    steps: Count = 20
    temperature: NonNegative = 1.3
    seed: Whole = 0
    rule: Rule = Rule.default  # published: the last step leaves one token out
    export: Export = Export.glb
    device: str = "auto"
    given: list[Part] = field(default_factory=list)  # parts of the body that are kept from a source
    source: str | None = None  # .npz of bodies; null: the bodies that are drawn when no part is given
    person: Whole = 0  # which body of the source
    reference: str | None = None  # .npz of bodies to compare figures with


@dataclass
class EvaluationOptions(PredictionOptions):
    output: str | None = None  # folder of the report; null: outputs/test/WEIGHTS_TESTSET_MODE
    rule: Rule = Rule.default  # published: the last sampling step leaves one token out
    protocol: list[str] | None = None  # null: all that the test set has
    limit: Count | None = None  # only the first so many people
    examples: Whole = 4  # pictures each of the best, the median and the worst people
    pictures: Annotated[Any, Literal["all"] | Whole] = 0  # a picture of each of the first so many people


@dataclass
class TrainingOptions:
    """What every training script has, and how a run is kept."""

    output: str = MISSING  # folder of checkpoints, logs and panels
    weights: str = MISSING  # file that mode=export writes and mode=test measures
    monitor: dict[str, str] = (
        MISSING  # {NAME: metric}: the lowest value's weights are kept as checkpoints/best_NAME.ckpt
    )
    mode: TrainingMode = TrainingMode.train  # train continues the last run in `output`
    resume: Resume = Resume.auto  # force: also with other options than the run was started with
    export_from: str = "last"  # weights of the run that mode=export writes: last | best_NAME
    export_dtype: Dtype = Dtype.float16  # of the weights that mode=export writes
    seed: Whole = 0
    checkpoint_minutes: NonNegative = 10.0  # between two training states; one is also left after every epoch and at
    # SIGTERM, SIGUSR1 and SIGUSR2
    requeue: bool = True  # on SLURM: at SIGUSR1 (the time limit is near) ask for the job to be run again
    ema_decay: NonNegative | None = None  # e.g. 0.9999: validate and export a moving average of the weights
    compile: bool = False  # torch.compile for the blocks of the network


@dataclass
class TokenizerTrainingOptions(TrainingOptions):
    output: str = "runs/tokenizer"
    weights: str = f"{_REPOSITORY}/tokenizer.safetensors"
    pretrained: str | None = None  # weights to start from; null: random ones
    monitor: dict[str, str] = field(default_factory=lambda: {"v2v": "val/V2V_mm", "loss": "val/loss"})


@dataclass
class PretrainingOptions(TrainingOptions):
    output: str = "runs/pretraining"
    tokenizer_weights: str = f"{_REPOSITORY}/tokenizer.safetensors"
    weights: str = f"{_REPOSITORY}/vqmae.safetensors"
    monitor: dict[str, str] = field(default_factory=lambda: {"cross_entropy": "val/cross_entropy_50_percent_masked"})


@dataclass
class CropOptions:
    size: Count = 192  # px
    margin: Positive = 1.1  # side of the crop in longer sides of the box
    patch: bool = False  # cut boxes of SMPL annotations exactly (ViT), not in whole pixels


@dataclass
class ImageTrainingOptions(TrainingOptions):
    mode: ImageTrainingMode = ImageTrainingMode.train
    output: str = "runs/${backbone_name}"
    backbone_name: str = MISSING  # set by configs/backbone
    tokenizer_weights: str = f"{_REPOSITORY}/tokenizer.safetensors"
    pretrained: str | None = f"{_REPOSITORY}/vqmae.safetensors"  # where a new run starts: a VQMAE or an image model
    # What HRNet, ResNet and ViT start from: FILE, imagenet (ResNet: torchvision's, downloaded if necessary) or random.
    # It is required unless `pretrained` is an image model, which includes its backbone. The others have own options.
    backbone_weights: str | None = None
    weights: str = f"{_REPOSITORY}/cvqmae.safetensors"
    monitor: dict[str, str] = field(
        default_factory=lambda: {"loss": "val/loss", "pve": "val/PVE", "pa_mpjpe": "val/PA-MPJPE"}
    )
    tta: TTA = TTA.flip  # test-time augmentation that predictions with the exported weights use
    protocol: ErrorProtocol = ErrorProtocol.coco17  # of the errors; mega: H36M joints, with experiment=mega_*
    loss_points: Count = 256  # vertices that the loss uses
    crop: CropOptions = field(default_factory=CropOptions)


@dataclass
class SyntheticOptions:
    folder: str = "datasets/synthetic"
    splits: dict[str, int] = field(default_factory=lambda: {"test": 2000, "val": 500, "train": 40000})  # pictures
    seed: Whole = 0
    processes: Count | None = None  # null: one per core
    overwrite: bool = False  # replace what was made with another seed or other settings


@dataclass
class PreparationOptions:
    dataset: Any = None  # a config of `configs/dataset/`, which has its options


@dataclass
class SetupOptions:
    root: str = "."  # folder with body_models/, checkpoint/ and datasets/


@dataclass
class ConversionOptions:
    weights: str | None = None  # mega_hrnet, mega_resnet, mega_vit, or a released file
    tokenizer_weights: str | None = None  # another tokenizer than the released one
    cam_range: Positive | None = None  # see `CVQMAE`; null: that of the published setup
    output: str | None = None  # folder; null: checkpoint/ and the name of the experiment's weights
    dtype: Dtype = Dtype.float32
    pretrained: str = "checkpoint/VQMAE/mega_pretrained"  # the prior; left out where there is none


@dataclass
class ComparisonOptions:
    reports: list[str] = field(default_factory=list)  # folders that test_mega.py wrote
    names: list[str] | None = None  # null: names of the folders
    baseline: str = "0"  # with which the others are compared: its number, from 0, or its name
    variants: list[str] = field(default_factory=lambda: ["deterministic"])
    protocols: list[str] | None = None  # null: all that every report has
    metrics: list[str] = field(default_factory=lambda: ["PVE", "MPJPE", "PA-MPJPE"])


@dataclass
class LatentOptions:
    output: str = "outputs/latents"
    weights: str = f"{_REPOSITORY}/tokenizer.safetensors"
    bodies: Annotated[int, at_least(2)] = 64  # unseen bodies
    token_bodies: Annotated[int, at_least(2)] = 8  # bodies in which the code of each token is exchanged
    steps: Annotated[int, at_least(2)] = 7  # meshes of an interpolation, both ends included
    pair: Whole = 0  # which pair of bodies the pictures show
    device: str = "auto"
    seed: Whole = 0


#: The options of each primary config.
OPTIONS: dict[str, type] = {
    "demo": DemoOptions,
    "generate": GenerateOptions,
    "test_mega": EvaluationOptions,
    "train_mesh_vqvae": TokenizerTrainingOptions,
    "pretrain_mega": PretrainingOptions,
    "train_mega": ImageTrainingOptions,
    "make_synthetic": SyntheticOptions,
    "prepare_data": PreparationOptions,
    "check_setup": SetupOptions,
    "convert_weights": ConversionOptions,
    "compare_reports": ComparisonOptions,
    "latent_analysis": LatentOptions,
}
_OF_TRAININGS = ("tokenizer", "backbone", "model", "data", "training", "trainer", "crop")
#: What an experiment sets for trainings only.
_WITHOUT_EFFECT = {
    "demo": ("body", *_OF_TRAININGS),
    "generate": ("body", *_OF_TRAININGS),
    "test_mega": _OF_TRAININGS,
}
for _name, _options in OPTIONS.items():
    # Without types, so that a config with `experiment=…` may hold more than a script needs; `check` looks at the types.
    _node = OmegaConf.to_container(OmegaConf.structured(_options), enum_to_str=True)
    ConfigStore.instance().store(name=f"{_name}_options", node=_node)


def main(
    config_name: str, rewrite: Callable[[list[str]], list[str]] | None = None
) -> Callable[[Callable[[DictConfig], int | None]], Callable[[], None]]:
    """Make `main(config) -> exit status` (None: 0) the entry point of a script with the options `config_name`.

    A wrong option and an error that the user can correct (ValueError, OSError) end the script with one sentence and
    exit status 1. Other errors are faults of ours and show a traceback, as all do with HYDRA_FULL_ERROR=1.
    With --multirun, each job has its own folder in `output`, all jobs are run, and the largest exit status counts.
    Characters that the terminal's encoding lacks are printed as question marks.

    Args:
        config_name: name of a primary config in `configs/`.
        rewrite: turns the words of the command line into Hydra's overrides.
    """

    def decorate(task: Callable[[DictConfig], int | None]) -> Callable[[], None]:
        @functools.wraps(task)
        def run() -> None:
            statuses, in_full = [], os.environ.get("HYDRA_FULL_ERROR", "0")

            @functools.wraps(task)
            def job(config: DictConfig) -> None:
                try:
                    config = check(config, config_name, HydraConfig.get().overrides.task)
                    if (folder := sweep_folder()) and config.get("output"):
                        config.output = str(Path(config.output, folder))
                    status = task(config) or 0
                except (OSError, ValueError, InstantiationException, OmegaConfBaseException) as error:
                    if in_full == "1" or not _can_be_corrected(error):
                        raise
                    print(describe(error), file=sys.stderr)
                    status = 1
                statuses.append(status)

            print_anything()
            words = sys.argv[1:] if rewrite is None else rewrite(sys.argv[1:])
            sys.argv[1:] = quote_texts(words, config_name)
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then leaves its errors to us
            try:
                hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(job)()
            except (HydraException, OmegaConfBaseException) as error:  # of the command line
                if in_full == "1" or not _can_be_corrected(error):
                    raise
                print(describe(error), file=sys.stderr)
                statuses.append(1)
            finally:
                os.environ["HYDRA_FULL_ERROR"] = in_full
            sys.exit(max(statuses, default=0))

        return run

    return decorate


def sweep_folder() -> str:
    """The name of the folder for the results of a job of --multirun: its number and the options that vary.

    Empty for a single run.
    """
    settings = HydraConfig.get()
    if settings.mode != RunMode.MULTIRUN:
        return ""
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    varied = {each.key_or_group for each in OverridesParser.create().parse_overrides(words) if each.is_sweep_override()}
    options = [word for word in settings.overrides.task if word.partition("=")[0].lstrip("+") in varied]
    return re.sub(r"[^\w=.,+-]", "_", f"{settings.job.num}_{','.join(options)}")[:100]


def compose(config_name: str, overrides: Iterable[str] = ()) -> DictConfig:
    """The checked config that a script gets from `overrides`."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = hydra.compose(config_name, list(overrides), return_hydra_config=True)
    return check(config, config_name, overrides)


def as_option(name: str, many: bool = False) -> Callable[[list[str]], list[str]]:
    """For `main`: words without = and names of files mean name=WORD, or with `many` name=[WORD, …]."""

    def rewrite(words: list[str]) -> list[str]:
        bare = [word for word in words if word[:1] != "-" and ("=" not in word or as_on_disk(word).exists())]
        quoted = [_quote(str(as_on_disk(word))) for word in bare]
        short = [f"{name}=[{','.join(quoted)}]"] if many and bare else [f"{name}={word}" for word in bare]
        return short + [word for word in words if word not in bare]

    return rewrite


def file_as_testset(words: list[str]) -> list[str]:
    """For `main`: testset=FILE.npz is short for testset=file testset.path=FILE.npz."""
    found = [(word, re.match(r"testset=(.*\.npz)$", word)) for word in words]
    parts = [["testset=file", f"testset.path={file[1]}"] if file else [word] for word, file in found]
    return [word for part in parts for word in part]


def quote_texts(words: Sequence[str], config_name: str) -> list[str]:
    """The words of a command line, with the values quoted that Hydra would not take for the text that they are.

    Without quotes, Hydra reads 007 as a number and refuses spaces, commas and brackets. Quoted are names of files and
    folders that exist, values of options of type text, and what Hydra cannot read. `~` is replaced by the home folder,
    and accents are written as on the disk, see `as_on_disk`.
    """
    hints = typing.get_type_hints(OPTIONS[config_name], include_extras=True)
    texts = {name for name, hint in hints.items() if "text" in _kinds(hint)}
    sweeps = any(word in ("-m", "--multirun") for word in words)

    def quoted(word: str) -> str:
        name, equals, value = word.partition("=")
        if word.startswith("-") or not equals or not re.fullmatch(r"[+~]*[\w./@]+", name):
            return word
        value = str(Path(value).expanduser()) if re.match(r"~[/\\]|~$", value) else value
        if value and not value.isascii():
            value = str(as_on_disk(value))
        group, _, last = name.rpartition(".")
        is_text = name in texts or (group and last in _PATHS and value[:1] not in ("[", "{"))
        # In a folder that holds a file `3`, samples=3 is still a number.
        if not _exists(value) or (not is_text and re.fullmatch(r"[+-]?[\d._]+(e[+-]?\d+)?|true|false", value, re.I)):
            if value == "null" or "${" in value or re.fullmatch(r"""(".*"|'.*')""", value, re.DOTALL):
                return f"{name}={value}"
            if (sweeps and "," in value) or (not is_text and _is_read_by_hydra(word)):
                return f"{name}={value}"
        return f"{name}={_quote(value)}"

    return [quoted(word) for word in words]


# Options in config groups that are paths.
_PATHS = ("folder", "path", "root", "cache", "videos", "pictures", "labels", "annotations", "weights")


def _exists(value: str) -> bool:
    try:
        return bool(value) and os.path.lexists(value)
    except ValueError:  # no path can have this name
        return False


def _is_read_by_hydra(word: str) -> bool:
    try:
        return not OverridesParser.create().parse_override(word).is_sweep_override()
    except HydraException:
        return False


def _quote(text: str) -> str:
    """A text as Hydra's grammar wants it: backslashes are doubled in front of a quotation mark only."""
    if re.fullmatch(r"[A-Za-z_./-][\w./-]*", text, re.ASCII) and text.lower() not in (
        "null",
        "true",
        "false",
        "nan",
        "inf",
    ):
        return text
    text = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + ('\\"' if found[2] else ""), text)
    return f'"{text}"'.replace("${", "\\${")


def check(config: DictConfig, config_name: str, overrides: Iterable[str] = ()) -> DictConfig:
    """A copy of a composed config with the types of its dataclass. Raises InputError for what does not fit.

    Nodes with `_target_` are compared with the signature of what they call. Other keys, from `experiment=…`, are kept.
    """
    hints = typing.get_type_hints(OPTIONS[config_name], include_extras=True)
    settings = config.hydra if "hydra" in config else HydraConfig.get()
    groups = [re.split("[/@]", group)[0] for group in settings.runtime.choices]
    _check_names(overrides, [*hints, *groups], [*config], config_name)
    config = OmegaConf.create({k: v for k, v in OmegaConf.to_container(config).items() if k != "hydra"})
    for name, hint in hints.items():
        _check_value(name, config, name, hint)
    for name in config:
        _check_node(name, config, name)
    typed = OmegaConf.structured(OPTIONS[config_name])
    OmegaConf.set_struct(typed, False)
    typed.merge_with(config)
    return typed


def _check_names(overrides: Iterable[str], known: Sequence[str], sections: Sequence[str], config_name: str) -> None:
    """Refuse what `+name=…` adds to the options and groups, and what would have no effect."""
    for override in overrides:
        name = re.split("[=.@/]", override.lstrip("+~"))[0]
        if name in _WITHOUT_EFFECT.get(config_name, ()):
            raise InputError(f"{override} would have no effect: {config_name}.py takes the model from its weights.")
        if name not in known and (override.startswith("+") or name not in sections):
            raise InputError(_unknown(name, known, f"{config_name}.py"))


def _unknown(name: str, known: Iterable[str], owner: str) -> str:
    """A sentence on a name that is none of those known."""
    known = sorted({str(each) for each in known} - {"hydra", "_target_", "_partial_"})
    close = difflib.get_close_matches(name.rpartition(".")[2], known, 1)
    hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}."
    return f"{name} is not an option of {owner}; {hint}"


def _read(config: DictConfig, name: str) -> Any:
    """The value of an option as plain Python; MISSING where it, or a value that it refers to, is not given."""
    if OmegaConf.is_missing(config, name):
        return MISSING
    try:
        value = config[name]
        return OmegaConf.to_container(value, resolve=True) if isinstance(value, DictConfig | ListConfig) else value
    except InterpolationResolutionError:
        return MISSING


def _check_value(label: str, parent: DictConfig, name: str, hint: Any) -> None:
    """Check an entry against a type hint; a single value for a list becomes a list."""
    value = _read(parent, name)
    if isinstance(hint, type) and hasattr(hint, "__dataclass_fields__") and isinstance(value, Mapping):
        hints = typing.get_type_hints(hint, include_extras=True)
        for key in value:
            if key not in hints:
                raise InputError(_unknown(f"{label}.{key}", hints, label))
            _check_value(f"{label}.{key}", parent[name], key, hints[key])
    elif value != MISSING and not _fits(value, hint):
        if _fits([value], hint):
            parent[name] = [value]
            return
        *others, last = _kinds(hint)
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        shown = shown.replace("'", "") if isinstance(value, list | dict) else shown
        raise InputError(f"{label}={shown} must be {', '.join(others)}{' or ' * bool(others)}{last}.")


def _check_node(label: str, parent: DictConfig, name: str) -> None:
    """Check a node with `_target_`, and those in it, against the signatures of their targets."""
    if OmegaConf.is_missing(parent, name) or OmegaConf.is_interpolation(parent, name):
        return
    node = parent[name]
    if isinstance(node, ListConfig):
        for i in range(len(node)):
            _check_node(f"{label}[{i}]", node, i)
    if not isinstance(node, DictConfig):
        return
    parameters = _parameters(label, node["_target_"]) if "_target_" in node else None
    for key in node:
        if parameters is not None and not key.startswith("_") and (label, key) not in _FOR_THE_SCRIPT:
            if key not in parameters and ... not in parameters:
                raise InputError(_unknown(f"{label}.{key}", parameters, node["_target_"].rpartition(".")[2]))
            _check_value(f"{label}.{key}", node, key, parameters.get(key, Any))
        _check_node(f"{label}.{key}", node, key)


# Keys that the scripts read themselves, or whose value `auto` they replace.
_FOR_THE_SCRIPT = {("testset", "batch_size"), ("testset", "workers"), ("trainer", "precision")}


def _parameters(label: str, target: str) -> dict[Any, Any]:
    """{name: type hint} of what a target accepts; the key `...` where it accepts other names as well."""
    try:
        called = get_object(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{label}._target_={target} cannot be imported: {error}.") from error
    scope = getattr(inspect.unwrap(called.__init__ if inspect.isclass(called) else called), "__globals__", {})
    hints = {}
    for parameter in inspect.signature(called).parameters.values():
        hint = parameter.annotation
        if parameter.kind is parameter.VAR_KEYWORD:
            hints[...] = Any
        elif not target.startswith(_TYPED):
            hints[parameter.name] = Any
        else:
            try:
                hints[parameter.name] = eval(hint, scope) if isinstance(hint, str) else hint
            except NameError:  # imported for type checkers only
                hints[parameter.name] = Any
    return hints


# Their type hints say all that is accepted; those of torchvision's transforms do not.
_TYPED = ("mega.", "mesh_vq_vae.", "lightning.")
_SIMPLE: dict[Any, tuple[str, type | types.UnionType]] = {
    bool: ("true or false", bool),
    int: ("a whole number", int),
    float: ("a number", int | float),
    str: ("text", str | int | float),
    Path: ("text", str | int | float),
    None: ("null", types.NoneType),
    types.NoneType: ("null", types.NoneType),
}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value fits a type hint."""
    return any(accepts(value) for accepts in _kinds(hint).values())


def _kinds(hint: Any) -> dict[str, Callable[[Any], bool]]:
    """{what a value may be, in words: whether a plain value is that}, null last; any value fits other hints."""
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is Annotated and arguments[0] is Any:  # OmegaConf does not know such unions
        return _kinds(arguments[1])
    if origin is Annotated:
        ((words, accepts),), limit = _kinds(arguments[0]).items(), arguments[1]
        return {f"{words} {limit.words}": lambda value: accepts(value) and math.isfinite(value) and limit.holds(value)}
    if origin in (typing.Union, types.UnionType):
        return dict(sorted((kind for each in arguments for kind in _kinds(each).items()), key=lambda k: k[0] == "null"))
    if origin is Literal:
        return {str(each): functools.partial(_is, each) for each in arguments}
    if inspect.isclass(origin) and issubclass(origin, Enum):
        return {name: functools.partial(_is, name) for name in origin.__members__}
    if origin in (list, tuple, Sequence, Iterable):
        item = arguments[0] if arguments else Any
        words = f"a list of {' | '.join(_kinds(item))}" if arguments else "a list"
        return {words: lambda value: isinstance(value, list) and all(_fits(each, item) for each in value)}
    if origin in (dict, Mapping):
        item = arguments[1] if arguments else Any
        words = f"a mapping to {' | '.join(_kinds(item))}" if arguments else "a mapping"
        return {words: lambda value: isinstance(value, Mapping) and all(_fits(each, item) for each in value.values())}
    if origin in _SIMPLE:
        words, types_ = _SIMPLE[origin]
        is_number = origin in (int, float)  # to Python, true and false are numbers as well
        return {words: lambda value: isinstance(value, types_) and not (is_number and isinstance(value, bool))}
    return {getattr(hint, "__name__", str(hint)): lambda value: True}


def _is(expected: Any, value: Any) -> bool:
    return value == expected and type(value) is type(expected)


def _can_be_corrected(error: Exception) -> bool:
    """Not a fault of ours in a constructor that Hydra called."""
    return not isinstance(error, InstantiationException) or isinstance(error.__cause__, OSError | ValueError)


def describe(error: Exception) -> str:
    """One sentence on an error."""
    cause = error.__cause__ or error
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={choice} is not known; choose from {', '.join(error.options)}."
    if isinstance(error, InstantiationException):
        return str(cause)
    if isinstance(cause, OmegaConfBaseException) and cause.full_key and isinstance(cause.parent_node, DictConfig):
        owner = cause.full_key.rpartition(".")[0] or Path(sys.argv[0]).name
        return _unknown(cause.full_key, cause.parent_node, owner)
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read: an option is written NAME=VALUE, without spaces around the =."
    return str(error).strip()


def build(config: DictConfig, **arguments: Any) -> Any:
    """What a config node with `_target_` describes; raises what its constructor raises, which Hydra wraps."""
    try:
        return instantiate(config, **arguments)
    except InstantiationException as error:
        raise error.__cause__ or error from None
