"""Rebuild `models/arcface-mini`, the embedded face recogniser: align -> train -> export -> evaluate -> card.

    python tools/build_arcface_mini.py --lfw LFW --portraits DIR --teacher reid-retail-0095.onnx --budget-s 3600

Every stage saves a checkpoint in `--work` and continues from it; you can kill it at any time and start it again.
`--data crops.npz` starts from a cache of aligned crops; then another machine needs only the repository, this file and
the teacher.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

STAGES = ("train", "export", "evaluate")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lfw", type=Path, help="Labeled Faces in the Wild with train_people.txt and test_people.txt")
    parser.add_argument("--portraits", type=Path, help="folder with portraits.csv and its photos")
    parser.add_argument("--teacher", type=Path, help="face-reidentification-retail-0095 as ONNX")
    parser.add_argument("--data", type=Path, help="packed cache of aligned crops (made if missing)")
    parser.add_argument("--work", type=Path, default=ROOT / ".build" / "arcface-mini", help="checkpoints")
    parser.add_argument("--out", type=Path, default=ROOT / "models" / "arcface-mini")
    parser.add_argument("--budget-s", type=float, default=3600.0, help="wall clock for training, seconds")
    parser.add_argument("--face-models", type=Path, help="InsightFace root with buffalo_sc, for the comparison")
    parser.add_argument("--stages", default=",".join(STAGES), help=f"comma-separated, of {', '.join(STAGES)}")
    parser.add_argument("--device", default=None, help="cpu or cuda; found by itself")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    import torch

    from tools.arcface_mini import card, data, evaluate, export, training

    stages = options.stages.split(",")
    if unknown := set(stages) - set(STAGES):
        print(f"Unknown stage: {', '.join(sorted(unknown))}. There are {', '.join(STAGES)}.", file=sys.stderr)
        return 2
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if "train" in stages:
        packed = options.data or options.work / "crops.npz"
        if not packed.is_file():
            if options.lfw is None or options.portraits is None:
                print("Give --lfw and --portraits, or an existing --data FILE.", file=sys.stderr)
                return 2
            data.pack(options.lfw, options.portraits, packed)
        if options.teacher is None:
            print("Give --teacher FILE: the recogniser to learn from.", file=sys.stderr)
            return 2
        training.train(data.load(packed), options.teacher, options.work, budget_s=options.budget_s, device=device)
    if "export" in stages:
        export.export(training.averaged(options.work), options.out / "arcface_mini.onnx")
    if "evaluate" in stages:
        if options.lfw is None:
            print("Give --lfw: the people to evaluate on.", file=sys.stderr)
            return 2
        figures, found = evaluate.everything(options.lfw, options.face_models)
        generated = evaluate.generated(options.lfw)
        command = " ".join(["python", "tools/build_arcface_mini.py", *(Path(a).name for a in sys.argv[1:])])
        card.write(options.out, figures, found, generated, command=command, work=options.work)
        print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
