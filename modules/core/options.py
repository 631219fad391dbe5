"""The table of settings: A1111's key, default, label, section, choices and range. Data only."""
from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Option:
    """One setting. The default's type is the setting's type (bool, int, float, str, or a tuple of str).

    restricted: changed on this machine's own page or by a launch flag only, never through the API.
    """

    key: str
    default: Any
    label: str
    section: str
    choices: tuple[Any, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    restricted: bool = False


EXTENSIONS = "Extensions"
MODEL, VAE, SAMPLER, PROMPT = "Model", "VAE", "Sampler parameters", "Prompt"
PICTURES = "img2img"
SAVING, PATHS, INFO, PREVIEW, PAGE, API = "Saving images", "Paths for saving", "Infotext", "Live previews", "Page", "API"

OPTIONS = (
    Option("sd_model_checkpoint", "", "Checkpoint", MODEL),
    Option("sd_vae", "Automatic", "VAE", VAE),
    Option("CLIP_stop_at_last_layers", 1, "Clip skip", MODEL, minimum=1, maximum=12),
    Option("randn_source", "NV", "Random number source", MODEL, choices=("NV", "CPU", "GPU")),
    Option("sd_checkpoint_hash", "", "SHA-256 of the checkpoint", MODEL),
    Option("sd_checkpoints_limit", 1, "Checkpoints in memory at the same time", MODEL, minimum=1, maximum=10),

    Option("emphasis", "Original", "Emphasis", PROMPT, choices=("Original", "No norm", "Ignore", "None")),
    Option("comma_padding_backtrack", 20, "Break a chunk at a comma within this many tokens of its end", PROMPT, minimum=0, maximum=74),
    Option("use_old_scheduling", False, "Old prompt editing timelines", PROMPT),
    Option("pad_cond_uncond", False, "Fill the shorter of prompt and negative prompt with empty chunks", PROMPT),
    Option("pad_cond_uncond_v0", False, "Bring the negative prompt to the prompt's length as A1111 did before 1.6", PROMPT),

    Option("eta_ddim", 0.0, "Eta for DDIM", SAMPLER, minimum=0.0, maximum=1.0),
    Option("eta_ancestral", 1.0, "Eta for ancestral samplers", SAMPLER, minimum=0.0, maximum=1.0),
    Option("ddim_discretize", "uniform", "Spacing of DDIM's timesteps", SAMPLER, choices=("uniform", "quad")),
    Option("s_churn", 0.0, "Sigma churn", SAMPLER, minimum=0.0, maximum=100.0),
    Option("s_tmin", 0.0, "Sigma tmin", SAMPLER, minimum=0.0, maximum=10.0),
    Option("s_tmax", 0.0, "Sigma tmax (0 = no upper end)", SAMPLER, minimum=0.0, maximum=999.0),
    Option("s_noise", 1.0, "Sigma noise", SAMPLER, minimum=0.0, maximum=1.1),
    Option("sigma_min", 0.0, "Schedule min sigma (0 = the model's own)", SAMPLER, minimum=0.0, maximum=1000.0),
    Option("sigma_max", 0.0, "Schedule max sigma (0 = the model's own)", SAMPLER, minimum=0.0, maximum=100000.0),
    Option("rho", 0.0, "Schedule rho (0 = the schedule's own)", SAMPLER, minimum=0.0, maximum=100.0),
    Option("eta_noise_seed_delta", 0, "ENSD", SAMPLER, minimum=-(2**31), maximum=2**31 - 1),
    Option("always_discard_next_to_last_sigma", False, "Discard penultimate sigma", SAMPLER),
    Option("sgm_noise_multiplier", False, "SGM noise multiplier", SAMPLER),
    Option("s_min_uncond", 0.0, "Negative guidance minimum sigma (0 = never)", SAMPLER, minimum=0.0, maximum=15.0),
    Option("s_min_uncond_all", False, "Negative guidance minimum sigma all steps", SAMPLER),
    Option("skip_early_cond", 0.0, "Ignore negative prompt during early sampling", SAMPLER, minimum=0.0, maximum=1.0),
    Option("token_merging_ratio", 0.0, "Token merging ratio", SAMPLER, minimum=0.0, maximum=0.9),
    Option("uni_pc_variant", "bh1", "UniPC variant", SAMPLER, choices=("bh1", "bh2")),
    Option("uni_pc_skip_type", "time_uniform", "UniPC skip type", SAMPLER, choices=("time_uniform", "time_quadratic", "logSNR")),
    Option("uni_pc_order", 3, "UniPC order", SAMPLER, minimum=1, maximum=50),
    Option("uni_pc_lower_order_final", True, "UniPC lower order final", SAMPLER),
    Option("sd_noise_schedule", "Default", "Noise schedule", SAMPLER, choices=("Default", "Zero Terminal SNR")),
    Option("beta_dist_alpha", 0.6, "Beta scheduler alpha", SAMPLER, minimum=0.01, maximum=1.0),
    Option("beta_dist_beta", 0.6, "Beta scheduler beta", SAMPLER, minimum=0.01, maximum=1.0),
    Option("hide_samplers", (), "Samplers not shown on the page", SAMPLER),

    Option("img2img_fix_steps", False, "Walk all steps, whatever the denoising strength", PICTURES),
    Option("initial_noise_multiplier", 1.0, "Noise multiplier", PICTURES, minimum=0.0, maximum=1.5),
    Option("img2img_extra_noise", 0.0, "Extra noise", PICTURES, minimum=0.0, maximum=1.0),
    Option("img2img_color_correction", False, "Give the result the colours of the picture it began from", PICTURES),
    Option("img2img_background_color", "#ffffff", "Behind transparent parts of a picture", PICTURES),
    Option("overlay_inpaint", True, "Paste back what is not masked", PICTURES),
    Option("inpainting_mask_weight", 1.0, "Conditional mask weight", PICTURES, minimum=0.0, maximum=1.0),

    Option("samples_save", True, "Save every picture", SAVING),
    Option("samples_format", "png", "Format of pictures", SAVING, choices=("png", "jpg", "jpeg", "webp")),
    Option("samples_filename_pattern", "", "Pattern of file names (empty = [number]-[seed])", SAVING),
    Option("save_images_add_number", True, "Begin file names with a number", SAVING),
    Option("jpeg_quality", 80, "Quality of JPEG and WebP", SAVING, minimum=1, maximum=100),
    Option("webp_lossless", False, "WebP without loss", SAVING),
    Option("save_incomplete_images", False, "Save pictures that were interrupted", SAVING),
    Option("save_txt", False, "Write a text file beside each picture", SAVING),
    Option("grid_save", True, "Save grids", SAVING),
    Option("grid_format", "png", "Format of grids", SAVING, choices=("png", "jpg", "jpeg", "webp")),
    Option("grid_only_if_multiple", True, "No grid of a single picture", SAVING),
    Option("n_rows", -1, "Rows of a grid (-1 = by itself, 0 = as the batch)", SAVING, minimum=-1, maximum=16),
    Option("save_to_dirs", True, "Put pictures into subfolders", SAVING),
    Option("grid_save_to_dirs", True, "Put grids into subfolders", SAVING),
    Option("directories_filename_pattern", "[date]", "Pattern of subfolder names", SAVING),
    Option("directories_max_prompt_words", 8, "Most words that [prompt_words] takes", SAVING, minimum=1, maximum=20),

    Option("outdir_samples", "", "Folder of all pictures (empty = the two below), inside the data folder", PATHS, restricted=True),
    Option("outdir_txt2img_samples", "outputs/txt2img-images", "Folder of txt2img pictures", PATHS, restricted=True),
    Option("outdir_img2img_samples", "outputs/img2img-images", "Folder of img2img pictures", PATHS, restricted=True),
    Option("outdir_extras_samples", "outputs/extras-images", "Folder of upscaled pictures", PATHS, restricted=True),
    Option("outdir_grids", "", "Folder of all grids (empty = the two below)", PATHS, restricted=True),
    Option("outdir_txt2img_grids", "outputs/txt2img-grids", "Folder of txt2img grids", PATHS, restricted=True),
    Option("outdir_img2img_grids", "outputs/img2img-grids", "Folder of img2img grids", PATHS, restricted=True),
    Option("outdir_save", "log/images", "Folder of the Save button", PATHS, restricted=True),

    Option("enable_pnginfo", True, "Write the parameters into the picture", INFO),
    Option("add_model_name_to_info", True, "Write the model's name", INFO),
    Option("add_model_hash_to_info", True, "Write the model's hash", INFO),
    Option("add_vae_name_to_info", True, "Write the VAE's name", INFO),
    Option("add_vae_hash_to_info", True, "Write the VAE's hash", INFO),
    Option("add_version_to_infotext", True, "Write the version of Easel", INFO),
    Option("disable_weights_auto_swap", True, "Pasting a text does not change the model", INFO),
    Option("infotext_styles", "Apply if any", "Styles found in a pasted prompt", INFO,
           choices=("Ignore", "Apply", "Discard", "Apply if any")),

    Option("live_previews_enable", True, "Show live previews", PREVIEW),
    Option("live_previews_image_format", "png", "Format of previews", PREVIEW, choices=("jpeg", "png", "webp")),
    Option("show_progress_every_n_steps", 10, "Preview every this many steps (-1 = only when asked)", PREVIEW, minimum=-1, maximum=32),
    Option("show_progress_type", "Approx cheap", "How previews are made", PREVIEW, choices=("Full", "Approx NN", "Approx cheap", "TAESD")),
    Option("live_preview_refresh_period", 1000, "Milliseconds between looks at the progress", PREVIEW, minimum=50, maximum=60000),
    Option("show_progressbar", True, "Show the progress bar", PREVIEW),

    Option("return_grid", True, "Show the grid in results", PAGE),
    Option("do_not_show_images", False, "Show no pictures in results", PAGE),
    Option("quicksettings_list", ("sd_model_checkpoint",), "Settings at the top of the page", PAGE),
    Option("send_seed", True, "Send the seed along to another tab", PAGE),
    Option("send_size", True, "Send the size along to another tab", PAGE),
    Option("interrupt_after_current", False, "Interrupt after the current picture", PAGE),

    Option("disabled_extensions", (), "Folders of extensions that are not loaded", EXTENSIONS, restricted=True),
    Option("disable_all_extensions", "none", "Load no extensions (extra = only built-in ones)", EXTENSIONS,
           choices=("none", "extra", "all"), restricted=True),

    Option("api_enable_requests", False, "Let the API fetch pictures by address", API, restricted=True),
    Option("api_forbid_local_requests", True, "Never fetch from this machine or its network", API, restricted=True),
    Option("api_useragent", "", "User agent of such requests", API, restricted=True),
)

BY_KEY = MappingProxyType({option.key: option for option in OPTIONS})
