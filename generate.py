"""Random bodies from the pre-trained masked transformer, without a picture, or completions of given parts of a body.

    python generate.py                              16 Anny bodies -> generated/
    python generate.py n=64 seed=1 output=more      other ones
    python generate.py experiment=mega_hrnet        SMPL bodies from the released prior (tools/check_setup.py)
    python generate.py 'given=[left_leg,right_leg]' source=demo_out/synthetic_sitting.npz     bodies with these legs
    python generate.py given=head person=3          16 bodies with the head of body 3 of `python generate.py`

    n=16 steps=20 temperature=1.3 seed=0            number of bodies, and how they are drawn
    rule=default           default | published, which leaves one token undrawn after the last step
    given=[]               parts that are kept, the others are drawn: head, torso, left_arm, right_arm, left_leg,
                           right_leg (arms with hands, legs with feet). Their tokens are kept; their surface moves a
                           little where it meets drawn parts
    source=null person=0   body with the given parts: in an .npz with `tokens` (of demo.py, generate.py), or with
                           `vertices` (P, V, 3) m, root rotation zero, y up, facing +z; null takes the bodies that the
                           same command draws without `given`
    reference=null         an .npz like `source`: the same figures for its first 256 bodies, e.g. those of
                           runs/tokens/bodies_test.npz, the unseen bodies of `pretrain_mega.py mode=test`
    output=generated       folder for bodies.png (the given parts in another colour), body_00.glb …, figures.json, and
                           bodies.npz: vertices (n, V, 3) m, y up, faces (F, 3), tokens (n, N), and with `given` also
                           source_tokens (N,) and given (N,) bool
    export=glb             glb | obj
    device=auto            auto | cpu | cuda | cuda:N | mps: auto takes a GPU if there is one (mps: a Mac's)
    pretrained=…           file of the masked transformer; tokenizer_weights=… of its tokenizer

Prints, and writes to figures.json, how much the bodies differ from each other and how plausible they are; the figures
are explained in mega/generation.py.
"""

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from mega.bodies.parts import PARTS
from mega.checkpoints import load_prior
from mega.config import main
from mega.export import make_output_folder, write_together
from mega.generation import (
    REFERENCE_BODIES,
    decode_bodies,
    encode_results,
    figures_table,
    given_tokens,
    measure_bodies,
    read_body_tokens,
)
from mega.photos import InputError
from mega.sampling import sample_unconditional


@main("generate")
def generate(config: DictConfig) -> int:
    """Draw the bodies, measure them, and write the results."""
    parts = list(config.given)
    if len(set(parts)) == len(PARTS):
        raise InputError("given names every part, so there is nothing to draw: leave one out.")
    if config.source is not None and not parts:
        raise InputError("source requires the parts of the body to keep, for example given=head.")
    output = make_output_folder(config.output)
    model, tokenizer = load_prior(config.pretrained, config.tokenizer_weights, config.device)
    device = tokenizer.template.device
    generator = torch.Generator(device).manual_seed(config.seed)
    reference = None
    if config.reference is not None:
        reference = read_body_tokens(config.reference, tokenizer, REFERENCE_BODIES).to(device)

    def draw(given: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:  # tokens (n, N)
        options = (config.n, config.steps, config.temperature, generator, config.rule)
        with tqdm(total=config.steps, desc="drawing", unit="step", leave=False) as bar:
            return sample_unconditional(model, *options, watch=lambda *_: bar.update(), given=given)

    given = None  # (tokens (N,) of a body, masked (N,) bool: those to draw)
    if parts:
        if config.source is not None:
            bodies, source = read_body_tokens(config.source, tokenizer).to(device), config.source
        else:
            bodies, source = draw(), f"the set drawn with n={config.n} seed={config.seed}"
        if config.person >= len(bodies):
            raise InputError(f"person={config.person} does not exist: {source} has {len(bodies)} bodies (0, 1, …).")
        given = given_tokens(tokenizer, parts, bodies[config.person])
    tokens = draw(given)
    vertices = decode_bodies(tokens, tokenizer)

    figures = {"drawn": measure_bodies(tokens, vertices, tokenizer, model)}
    if reference is not None:
        figures["reference"] = measure_bodies(reference, decode_bodies(reference, tokenizer), tokenizer, model)
    write_together(output, "bodies", encode_results(tokens, vertices, tokenizer, parts, given, figures, config.export))
    drawn = f"{config.n} bodies" + (f" with {', '.join(parts)} given" if parts else "")
    distance = figures["drawn"]["mean_pairwise_mm"]
    print(f"{drawn} in {output}/" + ("" if distance is None else f", {distance:.0f} mm apart on average"))
    print(figures_table(figures))
    return 0


if __name__ == "__main__":
    generate()
