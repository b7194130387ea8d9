"""Train a denoiser in one readable loop: accelerate launch scripts/train_minimal.py."""

import argparse
import math

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch.nn.functional import mse_loss

from denoiser import UNet
from denoiser.checks import check_positive
from denoiser.data import drop_labels, load_fashion_mnist, random_batch
from denoiser.device import choose_mixed_precision, in_best_layout, must_use_cpu
from denoiser.processes import start_process
from pipelines import DenoisingPipeline, image_grid, make_scheduler, sample_images, save_image
from pipelines.commands.parser import command


@command
def main() -> None:
    """Take the steps of scripts/train.py, to the bit, without evaluation, checkpoints, guide and further options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", default="runs/minimal")
    parser.add_argument("--data_root", default="data", help="folder of FashionMNIST")
    parser.add_argument("--steps", type=int, default=2000, help="some three minutes on two cores")
    parser.add_argument("--batch_size", type=int, default=128, help="images in a step of each process")
    parser.add_argument("--learning_rate", type=float, default=6e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wandb", default="offline", choices=["online", "offline", "disabled"])
    options = parser.parse_args()
    check_positive(steps=options.steps, batch_size=options.batch_size)

    precision = choose_mixed_precision("auto", start_process().device)  # bf16 where it is fast
    accelerator = Accelerator(cpu=must_use_cpu(), mixed_precision=precision, log_with="wandb")
    rank, processes, size = accelerator.process_index, accelerator.num_processes, options.batch_size
    images = load_fashion_mnist(options.data_root, "train", size=16).to(accelerator.device)
    classes, noise_schedule = len(images.class_names), DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    torch.manual_seed(options.seed)  # initial weights come from the global generator
    unet = in_best_layout(UNet(num_class_embeds=classes))
    optimizer = torch.optim.AdamW(unet.parameters(), betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    model, optimizer = accelerator.prepare(unet, optimizer)
    ema = EMAModel(unet.parameters(), decay=0.9999, use_ema_warmup=True, power=2 / 3, foreach=True)

    accelerator.init_trackers("denoiser", vars(options), {"wandb": {"mode": options.wandb}})
    for step in tqdm(range(options.steps)):
        rows = range(rank * size, (rank + 1) * size)  # of this process
        batch = random_batch(options.seed, step, processes * size, (1, 16, 16), len(images), 1000, 0.1, rows)
        batch = batch.to(accelerator.device)
        clean, labels = images.batch(batch.indices)
        labels = drop_labels(labels, classes, batch.label_dropped)  # label 10 means no class
        noisy = noise_schedule.add_noise(clean, batch.noise, batch.timesteps)
        prediction = model(noisy, batch.timesteps, labels).sample
        loss = mse_loss(prediction, batch.noise, reduction="none").mean(dim=(1, 2, 3)).mean()  # as train.py sums

        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        warmup, decay = min(1.0, (step + 1) / 100), (1 + math.cos(math.pi * step / options.steps)) / 2
        optimizer.param_groups[0]["lr"] = options.learning_rate * warmup * decay
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        accelerator.log({"loss": loss.item()}, step=step)

    unet = accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # the wrapper is that of autocast
    ema.copy_to(unet.parameters())
    if accelerator.is_main_process:
        pipeline = DenoisingPipeline(unet.eval(), noise_schedule, images.class_names, spacing="log-snr")
        pipeline.save_pretrained(f"{options.output_dir}/pipeline")
        pipeline.scheduler = make_scheduler("sde-dpmsolver++", noise_schedule.config)
        grid = image_grid(sample_images(pipeline, 100, num_inference_steps=20))
        save_image(grid, f"{options.output_dir}/samples.png")
        accelerator.trackers[0].log_images({"samples": [grid]})
    accelerator.end_training()


if __name__ == "__main__":
    main()
