"""Training: the additive angular margin (ArcFace, Deng et al. 2019) together with distillation.

The student gets an augmented crop (small, blurred, JPEG, other light), the teacher the original. The distillation loss
compares the student's vectors, and the similarities between the faces of a batch, with the teacher's; the margin loss
makes one person's photos more similar and different people's less. All random numbers depend on the step, so that a
resumed run is equal to an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pipelines.training.checkpoints import load_optimizer, load_tensors, optimizer_tensors, save_tensors
from tools.arcface_mini import data, network

BATCH, LEARNING_RATE, EMA = 64, 4e-4, 0.998
MARGIN, SCALE = 0.35, 32.0
DISTILL, RELATE, ARC = 2.0, 4.0, 0.06  # weights of the three parts; ArcFace's loss is about 30 times larger


class ArcFaceHead(nn.Module):
    """A classifier with one direction per training person; the right one must be nearer by an angle of MARGIN."""

    def __init__(self, directions: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(directions.clone())

    def forward(self, embeddings: torch.Tensor, person: torch.Tensor) -> torch.Tensor:
        cosine = F.linear(F.normalize(embeddings, dim=1), F.normalize(self.weight, dim=1)).clamp(-1 + 1e-6, 1 - 1e-6)
        own = cosine.gather(1, person[:, None])
        angle = torch.acos(own) + MARGIN
        # beyond 180 degrees the cosine would increase again: continue linearly there
        hard = torch.where(angle < math.pi, torch.cos(angle), own - math.sin(MARGIN) * MARGIN)
        return F.cross_entropy(SCALE * cosine.scatter(1, person[:, None], hard), person)


class Student(nn.Module):
    """Network and heads in one module, so that checkpoint and average are one dict each."""

    def __init__(self, net: network.MobileFaceNet, directions: torch.Tensor) -> None:
        super().__init__()
        self.net = net
        self.head = ArcFaceHead(directions)
        self.to_teacher = nn.Linear(network.EMBEDDING, 256, bias=False)
        with torch.no_grad():
            self.to_teacher.weight.zero_()
            self.to_teacher.weight[:, :256] = torch.eye(256)


def pixels_of(crops: data.Crops, index: np.ndarray) -> torch.Tensor:
    return torch.tensor(crops.pixels[index]).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def embed_all(
    net: Callable[[torch.Tensor], torch.Tensor], crops: data.Crops, index: np.ndarray, *, device: str
) -> torch.Tensor:
    """Unit vectors of clean crops, each the mean of itself and its mirror image."""
    out = []
    for part in np.array_split(index, max(1, math.ceil(len(index) / 64))):
        x = torch.tensor(crops.crop(part), device=device).permute(0, 3, 1, 2).float() / 255
        out.append((net(x) + net(x.flip(3))).float().cpu())
    return F.normalize(torch.cat(out), dim=1)


class Teacher:
    """The teacher on ArcFace crops (b, 3, 112, 112) in 0..1 -> (b, 256). Its own runtime is five times faster here."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.framed = network.MobileFaceNet().framed

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        picture = (self.framed(x.cpu()).flip(1) * 255.0).contiguous().numpy()
        (answer,) = self.session.run(None, {self.session.get_inputs()[0].name: picture})
        return torch.from_numpy(answer)


def train(crops: data.Crops, teacher_file: Path, folder: Path, *, budget_s: float, device: str) -> None:
    """Train until `budget_s` of wall clock (all runs together) is used. Checkpoint: folder/student.safetensors."""
    index = np.flatnonzero(crops.part != data.VALIDATION)
    _, person = np.unique(crops.person[index], return_inverse=True)
    targets = _targets(crops, index, teacher_file, folder, device)
    net = network.from_teacher(teacher_file).to(device)
    # the network starts as the teacher, so each person's direction starts as the mean of the teacher's vectors
    first = F.pad(targets, (0, network.EMBEDDING - targets.shape[1]))
    directions = torch.zeros(int(person.max()) + 1, network.EMBEDDING).index_add_(0, torch.tensor(person), first)
    student = Student(net.train(), F.normalize(directions, dim=1)).to(device)
    student.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=1e-3, fused=True)
    average = {name: p.detach().clone() for name, p in student.net.named_parameters()}
    step, spent_s, checkpoint = 0, 0.0, folder / "student.safetensors"
    if checkpoint.is_file():
        tensors, meta = load_tensors(checkpoint)
        student.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        average = {k[4:]: v.to(device) for k, v in tensors.items() if k.startswith("ema.")}
        load_optimizer(optimizer, tensors)
        step, spent_s = meta["step"], meta["spent_s"]
    shown = {"distill": 0.0, "relate": 0.0, "arc": 0.0}
    started, saved = time.monotonic() - spent_s, time.monotonic()
    own = torch.eye(BATCH, dtype=torch.bool)

    def save() -> None:
        tensors = {f"model.{k}": v for k, v in student.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in average.items()} | optimizer_tensors(optimizer)
        save_tensors(checkpoint, tensors, {"step": step, "spent_s": spent_s})

    while spent_s < budget_s:
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(0, len(index), (BATCH,), generator=generator)
        x = data.views(pixels_of(crops, index[chosen.numpy()]), generator).to(device)
        target, who = targets[chosen].to(device), torch.tensor(person[chosen.numpy()], device=device)
        rate = LEARNING_RATE * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * spent_s / budget_s)) + 1e-6
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device, torch.bfloat16):
            embedding = student.net(x)
        embedding = embedding.float()
        distill = 1 - F.cosine_similarity(student.to_teacher(embedding), target).mean()
        unit = F.normalize(embedding, dim=1)
        gap = (unit @ unit.T - target @ target.T) ** 2
        relate = gap.masked_fill(own.to(device), 0.0).sum() / (BATCH * (BATCH - 1))
        arc = student.head(embedding, who)
        loss = DISTILL * distill + RELATE * relate + ARC * arc
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the recogniser's loss became {loss.item()} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        step += 1
        decay = min(EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, p in student.net.named_parameters():
                average[name].lerp_(p, 1 - decay)
        for name, value in (("distill", distill), ("relate", relate), ("arc", arc)):
            shown[name] += (0.05 if step > 20 else 0.5) * (value.item() - shown[name])
        spent_s = time.monotonic() - started
        if step % 25 == 0:
            text = " ".join(f"{k} {v:.4f}" for k, v in shown.items())
            print(f"recogniser step {step} {spent_s:.0f}s {text}", flush=True)
        if step % 200 == 0:
            print(f"recogniser validation: {validation(averaged(folder, average), crops, device=device)}", flush=True)
        if time.monotonic() - saved > 120:
            saved = time.monotonic()
            save()
    save()


def _targets(crops: data.Crops, index: np.ndarray, teacher_file: Path, folder: Path, device: str) -> torch.Tensor:
    """The teacher's unit vectors (n, 256) of LFW and portraits; stored only beside the checkpoint."""
    file = folder / "targets.safetensors"
    if file.is_file():
        tensors, meta = load_tensors(file)
        if meta == {"faces": len(index)}:
            return tensors["targets"]
    targets = embed_all(Teacher(teacher_file), crops, index, device=device)
    save_tensors(file, {"targets": targets}, {"faces": len(index)})
    return targets


def averaged(folder: Path, average: dict[str, torch.Tensor] | None = None) -> network.MobileFaceNet:
    """The averaged network: with the weights of `average`, else of the last checkpoint."""
    if average is None:
        tensors, _ = load_tensors(folder / "student.safetensors")
        average = {k[4:]: v for k, v in tensors.items() if k.startswith("ema.")}
    net = network.MobileFaceNet()
    net.load_state_dict({k: v.detach().float().cpu() for k, v in average.items()})
    return net.eval()


def validation(net: nn.Module, crops: data.Crops, *, device: str, low_px: int = 40) -> dict[str, float]:
    """Best accuracy on balanced pairs of validation people: with original crops, and with one of `low_px` pixels."""
    index = np.flatnonzero(crops.part == data.VALIDATION)
    several = [k for k in index if (crops.person[index] == crops.person[k]).sum() > 1]
    kept = np.array(several)
    net = net.to(device)
    clean = embed_all(net, crops, kept, device=device)
    pixels = torch.tensor(crops.crop(kept)).permute(0, 3, 1, 2).float() / 255
    low = F.interpolate(pixels, (low_px, low_px), mode="bilinear", antialias=True, align_corners=False)
    back = F.interpolate(low, pixels.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
    with torch.no_grad():
        small = F.normalize(torch.cat([net(part.to(device)).float().cpu() for part in back.split(64)]), dim=1)
    who = crops.person[kept]
    out = {}
    for name, other in (("clean", clean), ("small", small)):
        same, different = [], []
        rng = np.random.default_rng(0)
        for k in range(len(kept)):
            mates = np.flatnonzero((who == who[k]) & (np.arange(len(kept)) != k))
            strangers = np.flatnonzero(who != who[k])
            same.append(float(clean[k] @ other[rng.choice(mates)]))
            different.append(float(clean[k] @ other[rng.choice(strangers)]))
        out[name] = round(best_accuracy(np.array(same), np.array(different))[0], 4)
    return out


def best_accuracy(same: np.ndarray, different: np.ndarray) -> tuple[float, float]:
    """(accuracy, threshold) of the best threshold between two kinds of pairs, with weight one half for each kind."""
    cuts = np.sort(np.concatenate([same, different]))
    hits = 1 - np.searchsorted(np.sort(same), cuts, "left") / len(same)
    rejections = np.searchsorted(np.sort(different), cuts, "left") / len(different)
    best = int(np.argmax(hits + rejections))
    return float(hits[best] + rejections[best]) / 2, float(cuts[best])
