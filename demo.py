"""Human meshes from pictures.

    python demo.py                                     demo_data/ -> demo_out/
    python demo.py input=photos output=results         a folder; also a file or a pattern: 'input=photos/*.jpg'
    python demo.py boxes=boxes.json                    {"name.jpg": [[x0, y0, x1, y1], …], …}, px
    python demo.py detector=torchvision                find the people (its weights are fetched at first use)
    python demo.py mode=stochastic samples=25          several meshes a person, and how far they spread
    python demo.py experiment=mega_hrnet               the published model, from your files (python check_setup.py)

    input=demo_data        folder, file or glob pattern
    output=demo_out        folder for the results, made if need be
    boxes=null             JSON file; if null, boxes.json of the input folder is taken if there is one
    detector=boxes         boxes | whole_image | torchvision. A picture without boxes is taken whole: its box is
                           tightened around the first prediction, then it is predicted again
    mode=deterministic     deterministic | stochastic; the latter adds samples and their spread to the former
    samples=25 steps=5 temperature=1 seed=0            of the stochastic mode
    decode=null            argmax | soft: the mesh of the likeliest codes, as published, or of the mean codes;
                           null leaves it to the weights
    tta=null               none | flip | shift | flip_shift: of a crop as it is, as published, or the mean over it and
                           crops that are mirrored (2 times the time of a prediction), moved (5) or both (10); null
                           leaves it to the weights
    focal=null             of the camera, px; null assumes 1000/224 of the picture's longer side
    export=glb             glb | obj
    device=auto            auto | cpu | cuda | cuda:1 …
    precision=fp32         fp32 | bf16 | auto: products of backbone and transformer in bfloat16, about twice as fast on
                           CPUs that have it and far slower on others; about one token in a hundred differs. Rotation,
                           camera and mesh stay in fp32. auto takes bf16 where the device has it; the default does not,
                           so that the same picture gives the same mesh everywhere
    compile=false          true | false: torch.compile for backbone and transformer. Takes minutes before the first
                           picture and, on a CPU, a C++ compiler: for many pictures only
    weights=checkpoint/anny_lite   folder with tokenizer.safetensors and cvqmae.safetensors
    tighten_passes=2 max_side=1024                     passes of the tightening; longer side of drawn pictures, px

For NAME.jpg the output folder gets, all of them or none:

    NAME_overlay.png       input, people in place, from the side; in stochastic mode also a heat map of the spread
    NAME_p0.glb …          a mesh a person, metres, y up, the camera in the origin
    NAME.npz               vertices (P, V, 3) float32 in the camera frame of the full picture: metres, x right,
                           y down, z forward; faces (F, 3); boxes (P, 4) px; focal px; principal_point (2,) px;
                           tokens (P, N); keypoints3d (P, 23, 3) metres; keypoints2d (P, 23, 2) px
                           (SMPL's 24 joints with experiment=mega_*)
                           in stochastic mode samples (P, Q, V, 3) and uncertainty (P, V), metres: the standard
                           deviation of where the samples put each vertex

Pictures of the same name (a.jpg, a.png) get results of different names (a_jpg, a_png). A picture that cannot be used is
named with the reason and the others are still done; the exit status is then 1.
"""

from omegaconf import DictConfig

from mega.config import main
from mega.demo_run import run_demo


@main("demo")
def main(config: DictConfig) -> int:
    return run_demo(config)


if __name__ == "__main__":
    main()
