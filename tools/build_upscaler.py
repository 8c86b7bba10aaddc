"""Rebuild `models/upscale-x2-mini`: frame the portraits -> pixels -> gan -> critic -> export -> evaluate and card.

    python tools/build_upscaler.py --portraits DIR --pixels-budget-s 1500 --gan-budget-s 2700 --critic-budget-s 600

Every stage saves a checkpoint in `--work` and continues from it; you can kill it at any time and start it again. The
work folder contains faces (`portraits.npz`, and `drawn.npz`, drawn by the embedded base), which must not be committed.
`--data portraits.npz` starts from a cache; then another machine needs only the repository and this file.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

STAGES = ("pixels", "gan", "critic", "export", "evaluate")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portraits", type=Path, help="folder with portraits.csv and its photos")
    parser.add_argument("--data", type=Path, help="packed cache of framed portraits (made from --portraits if missing)")
    parser.add_argument("--work", type=Path, default=ROOT / ".build" / "upscaler", help="checkpoints and caches")
    parser.add_argument("--out", type=Path, default=ROOT / "models" / "upscale-x2-mini")
    parser.add_argument("--pixels-budget-s", type=float, default=1500.0, help="wall clock of the L1 stage, seconds")
    parser.add_argument("--gan-budget-s", type=float, default=2700.0, help="wall clock against the critic, seconds")
    parser.add_argument("--critic-budget-s", type=float, default=600.0, help="wall clock of the flaw map, seconds")
    parser.add_argument("--people", type=Path, help="folder of people (people.csv): photos that no studio took")
    parser.add_argument(
        "--face-models", type=Path, help="InsightFace root with buffalo_sc, for a second ArcFace figure"
    )
    parser.add_argument("--stages", default=",".join(STAGES), help=f"comma-separated, of {', '.join(STAGES)}")
    parser.add_argument("--device", default=None, help="cpu or cuda; found by itself")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    import torch

    from tools.upscaler import data, training

    stages = options.stages.split(",")
    if unknown := set(stages) - set(STAGES):
        print(f"Unknown stage: {', '.join(sorted(unknown))}. There are {', '.join(STAGES)}.", file=sys.stderr)
        return 2
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    work: Path = options.work
    packed, drawn = options.data or work / "portraits.npz", work / "drawn.npz"
    if not packed.is_file():
        if options.portraits is None:
            print("Give --portraits DIR or an existing --data FILE.", file=sys.stderr)
            return 2
        data.pack(options.portraits, packed)
    portraits = data.load(packed)
    for stage, budget_s in (("pixels", options.pixels_budget_s), ("gan", options.gan_budget_s)):
        if stage in stages:
            training.train(portraits, work, stage=stage, budget_s=budget_s, device=device)
    if {"critic", "evaluate"} & set(stages) and not drawn.is_file():
        data.draw(drawn)
    if "critic" in stages:
        from tools.upscaler import critic

        critic.train(portraits, data.read(drawn)["frames"], work, budget_s=options.critic_budget_s, device=device)
    if "export" in stages:
        from tools.upscaler import export

        export.export(work, options.out)
    if "evaluate" in stages:
        from tools.upscaler import card, evaluate

        figures = evaluate.everything(
            options.out, portraits, data.read(drawn)["frames"], options.people, options.face_models
        )
        command = " ".join(["python", "tools/build_upscaler.py", *(Path(a).name for a in sys.argv[1:])])
        card.write(options.out, figures, command=command, work=work)
        print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
