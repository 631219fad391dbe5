"""How the page looks: colours, fonts and radii as a Gradio theme. Fonts are the system's own, so nothing is fetched."""
import gradio as gr
from gradio.themes.utils import colors, sizes

PAINT = colors.Color(
    name="paint", c50="#fdf5f1", c100="#fae6dc", c200="#f3c9b6", c300="#e9a488", c400="#dc7c58", c500="#cd5c34",
    c600="#b8481f", c700="#983a19", c800="#7a3117", c900="#632a16", c950="#36140a",
)
PAPER = colors.Color(
    name="paper", c50="#faf9f7", c100="#f3f1ee", c200="#e5e2dd", c300="#d0ccc5", c400="#a39e96", c500="#736e67",
    c600="#57534d", c700="#3f3c38", c800="#292724", c900="#1c1b19", c950="#131211",
)
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Cantarell", "Noto Sans", "DejaVu Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Cascadia Mono", "Consolas", "DejaVu Sans Mono", "monospace")


def theme() -> gr.themes.Base:
    """Quiet paper greys and one warm accent, kept for what the eye should find first: Generate, focus, progress."""
    base = gr.themes.Base(
        primary_hue=PAINT, secondary_hue=PAINT, neutral_hue=PAPER, font=SANS, font_mono=MONO,
        text_size=sizes.text_md, spacing_size=sizes.spacing_md, radius_size=sizes.radius_md,
    )
    return base.set(
        body_background_fill="*neutral_50", body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900", body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_400",
        background_fill_primary="#ffffff", background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_100", background_fill_secondary_dark="*neutral_800",
        border_color_primary="*neutral_200", border_color_primary_dark="*neutral_800",
        block_background_fill="#ffffff", block_background_fill_dark="*neutral_900",
        block_border_width="1px", block_border_color="*neutral_200", block_border_color_dark="*neutral_800",
        block_shadow="none", block_shadow_dark="none", block_padding="*spacing_lg", block_radius="*radius_lg",
        block_label_background_fill="transparent", block_label_background_fill_dark="transparent",
        block_label_border_width="0px", block_label_text_color="*neutral_600", block_label_text_color_dark="*neutral_400",
        block_title_text_color="*neutral_700", block_title_text_color_dark="*neutral_300",
        block_title_text_size="*text_sm", block_title_text_weight="500", block_label_text_size="*text_sm",
        input_background_fill="*neutral_50", input_background_fill_dark="*neutral_950",
        input_background_fill_focus="#ffffff", input_background_fill_focus_dark="*neutral_950",
        input_border_color="*neutral_300", input_border_color_dark="*neutral_700",
        input_border_color_focus="*primary_500", input_border_color_focus_dark="*primary_400",
        input_placeholder_color="*neutral_500", input_placeholder_color_dark="*neutral_400",
        input_border_width="1px", input_shadow="none", input_shadow_dark="none", input_radius="*radius_md", input_padding="*spacing_md",
        button_primary_background_fill="*primary_600", button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700", button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color="#ffffff", button_primary_text_color_dark="#ffffff",
        button_primary_border_color="transparent", button_primary_border_color_dark="transparent",
        button_secondary_background_fill="#ffffff", button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover="*neutral_100", button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_border_color="*neutral_300", button_secondary_border_color_dark="*neutral_700",
        button_secondary_text_color="*neutral_800", button_secondary_text_color_dark="*neutral_100",
        button_border_width="1px", button_large_radius="*radius_lg", button_small_radius="*radius_md",
        button_large_text_weight="600", button_medium_text_weight="500", button_small_text_weight="500",
        button_primary_shadow="none", button_secondary_shadow="none",
        slider_color="*primary_500", slider_color_dark="*primary_500", color_accent="*primary_600",
        border_color_accent="*primary_500", border_color_accent_dark="*primary_400",
        layout_gap="*spacing_lg", form_gap_width="0px",
    )
