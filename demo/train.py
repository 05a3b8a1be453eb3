"""Train the demo checkpoint: `python -m latentrt.demo.train --work DIR [--workers 2]`.

The stages are tokenizer, vae, decoder, latents, unet, export. Each writes its result to the work folder, is skipped if
that is complete, and resumes where it was interrupted.
"""

import argparse
import os
import socket
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import AutoencoderKL
from torch.multiprocessing.spawn import spawn

from latentrt.demo.curve import draw_curve
from latentrt.demo.export import export
from latentrt.demo.pool import encode_pool
from latentrt.demo.tokens import write_tokenizers
from latentrt.demo.train_decoder import train_decoder
from latentrt.demo.train_unet import NAMES, Trainer, UnetRecipe, train_unet
from latentrt.demo.train_vae import train_vae

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run every stage that is not complete."""
    # Threads that wait actively starve each other on a shared machine; one thread per worker is faster.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    options = parser().parse_args(arguments)
    torch.set_num_threads(1)
    work: Path = options.work
    options.output = options.output or work / "checkpoint"
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tokenizer_2").is_dir():
        write_tokenizers(work)
    if not (work / "vae" / "config.json").is_file():
        train_decoder(work, train_vae(work)).save_pretrained(work / "vae")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(run_worker, (options, port), nprocs=options.workers)  # type: ignore[no-untyped-call]


def run_worker(worker: int, options: argparse.Namespace, port: int) -> None:
    """Encode the latents and train the U-Net, in one of `options.workers` processes."""
    torch.set_num_threads(1)
    work, workers = options.work, options.workers
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=worker, world_size=workers)
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    # The number of parts does not follow that of workers, so that a restart with other workers finds them.
    parts = options.parts
    for part in range(worker, parts, workers):
        encode_pool(vae, options.pictures, work, part, parts)
    dist.barrier()

    def snapshot(trainer: Trainer, step: int) -> None:
        trainer.average.swap()
        export(options.output, {name: trainer.networks[name] for name in NAMES} | {"vae": vae}, work)
        trainer.average.swap()
        draw_curve(work / "unet_loss.csv", work / "unet_loss.png")

    recipe = UnetRecipe(steps=options.steps)
    trainer = train_unet(work, recipe, worker, workers, parts, snapshot)
    if worker == 0:
        snapshot(trainer, recipe.steps)
    dist.destroy_process_group()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--work", type=Path, required=True, help="folder of states, latents and loss curves")
    result.add_argument("--output", type=Path, default=None, help="checkpoint folder (default: WORK/checkpoint)")
    result.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    result.add_argument("--parts", type=int, default=2, help="files that the latents of one size are split into")
    result.add_argument("--pictures", type=int, default=24000, help="pictures in the training pool")
    result.add_argument("--steps", type=int, default=UnetRecipe().steps, help="steps of the U-Net's training")
    return result


if __name__ == "__main__":
    main()
