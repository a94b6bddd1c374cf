"""Random bodies from the pre-trained masked transformer, without any picture; or a body's missing parts.

    python generate.py                              16 Anny bodies -> generated/
    python generate.py n=64 seed=1 output=more      others
    python generate.py experiment=mega_hrnet        SMPL bodies from the released prior (python check_setup.py)
    python generate.py 'given=[left_leg,right_leg]' source=demo_out/synthetic_sitting.npz     what may sit on these legs
    python generate.py given=head person=3          16 bodies with the head of body 3 of `python generate.py`

    n=16 steps=20 temperature=1.3 seed=0            how many, and how they are drawn
    rule=default           default | published, whose last step leaves one token out
    given=[]               parts to keep, the others are drawn: head, torso, left_arm, right_arm, left_leg, right_leg
                           (arms with hands, legs with feet). Their tokens stay; their surface moves a little where
                           something else is drawn beside it
    source=null person=0   whose parts: a body of an .npz with `tokens` (of demo.py, generate.py), or with `vertices`
                           (P, V, 3) m, root rotation zero, y up, facing +z; null for the bodies drawn without `given`
    reference=null         an .npz like `source`: the same figures for its first 256 bodies, e.g. those of
                           runs/tokens/bodies_test.npz, the unseen bodies of `pretrain_mega.py mode=test`
    output=generated       folder for bodies.png (the given parts in another colour), body_00.glb …, figures.json, and
                           bodies.npz: vertices (n, V, 3) m, y up, faces (F, 3), tokens (n, N), and with `given` also
                           source_tokens (N,) and given (N,) bool
    export=glb             glb | obj
    device=auto            auto | cpu | cuda | cuda:1 …
    pretrained=…           the masked transformer; tokenizer_weights=… its tokenizer

Prints, and writes to figures.json, how different the bodies are (mean distance between the same vertex of two of them,
also by part; spread of limb lengths) and how plausible (left against right limbs, edges stretched to twice the
template's, how far a body moves when it is encoded and decoded, the prior's cross-entropy of half the tokens given the
other half). mega/inference/plausibility.py says what each means and how to read it.
"""

from omegaconf import DictConfig

from mega.config import main
from mega.generation import run_generation


@main("generate")
def main(config: DictConfig) -> int:
    return run_generation(config)


if __name__ == "__main__":
    main()
