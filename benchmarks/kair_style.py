"""`python -m benchmarks.kair_style FOLDER`: a loop as users of KAIR run it, from a description of KAIR; no code of its.

It resumes by the names of the files, each kind at its own highest iteration, and goes on with the highest of all. The
optimizer is saved, which KAIR does not do by default. It ends at the last iteration, where KAIR does one more.
"""

import copy
import random
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from torch.utils.data import DataLoader

from benchmarks.resume_task import Faces, Recorder, read_task


def find_last_checkpoint(folder: Path, kind: str) -> tuple[int, Path | None]:
    """The highest iteration among <iter>_<kind>.pth, and that file; 0 and None without any."""
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := re.fullmatch(rf"(\d+)_{kind}", path.stem))]
    return max(found, default=(0, None))


def main() -> None:
    task, rank = read_task(), 0
    recorder = Recorder(task.folder)
    models = Path(task.folder) / "models"
    models.mkdir(exist_ok=True)
    seed = task.seed + rank
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    torch.set_num_threads(1)

    last = {kind: find_last_checkpoint(models, kind) for kind in ("G", "E", "optimizerG")}
    netG = task.network()
    if last["G"][1]:
        netG.load_state_dict(torch.load(last["G"][1]))
    netE = copy.deepcopy(netG).eval()
    if last["E"][1]:
        netE.load_state_dict(torch.load(last["E"][1]))
    lossfn = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(netG.parameters(), lr=task.rate)
    if last["optimizerG"][1]:
        optimizer.load_state_dict(torch.load(last["optimizerG"][1]))
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(task.milestones), task.gamma)
    current_step = max(step for step, _ in last.values())
    recorder.started(**{kind: step for kind, (step, _) in last.items()})

    loader = DataLoader(Faces(task), task.batch_size, shuffle=True, drop_last=True)
    while current_step < task.total_iter:
        for images, targets, samples in loader:
            current_step += 1
            scheduler.step(current_step)
            optimizer.zero_grad()
            lossfn(netG(images), targets).backward()
            optimizer.step()
            with torch.no_grad():
                for average, weight in zip(netE.parameters(), netG.parameters(), strict=True):
                    average.mul_(task.E_decay).add_(weight, alpha=1 - task.E_decay)
            recorder.updated(current_step, optimizer.param_groups[0]["lr"], samples)
            if current_step % task.save_every == 0:
                torch.save(netG.state_dict(), models / f"{current_step}_G.pth")
                torch.save(netE.state_dict(), models / f"{current_step}_E.pth")
                torch.save(optimizer.state_dict(), models / f"{current_step}_optimizerG.pth")
            if current_step == task.total_iter:
                break
    recorder.ended(G=netG, E=netE)


if __name__ == "__main__":
    main()
