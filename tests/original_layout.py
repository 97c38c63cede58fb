"""Pipelines under the tensor names of their models' first code: the way back from what diffusers reads, written anew.

Sources: CompVis' and Stability AI's ``ldm`` / ``sgm`` (U-Net, VAE, encoders), Stability AI's ``sd3-ref``, Black Forest
Labs' ``flux``, Alpha-VLLM's ``Lumina-Image-2.0``, NVIDIA's ``Sana``, ComfyUI's files of Qwen-Image 2.1.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]
NETWORK = "model.diffusion_model."

RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}
UNET = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
}


def replaced(name: str, table: Mapping[str, str]) -> str:
    for ours, theirs in table.items():
        name = name.replace(ours, theirs)
    return name


def unet(model: Any) -> dict[str, Tensor]:
    state, step = model.state_dict(), model.config.layers_per_block + 1
    attends = {int(name.split(".")[1]) for name in state if re.match(r"up_blocks\.\d+\.attentions", name)}

    def name_of(name: str) -> str:
        match = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name)
        if not match:
            ours = next(ours for ours in UNET if name.startswith(ours))
            return UNET[ours] + name.removeprefix(ours)
        way, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        number = step * block + layer + (way == "down")
        blocks = "input_blocks" if way == "down" else "output_blocks"
        if kind == "downsamplers":
            return f"{blocks}.{step * (block + 1)}.0.{rest.replace('conv.', 'op.')}"
        if kind == "upsamplers":
            return f"{blocks}.{step * (block + 1) - 1}.{2 if block in attends else 1}.{rest}"
        return f"{blocks}.{number}.{0 if kind == 'resnets' else 1}.{rest}"

    named = {name_of(name): tensor for name, tensor in state.items()}
    return {
        NETWORK + (name if "transformer_blocks" in name else replaced(name, RESNET)): t for name, t in named.items()
    }


def vae(model: Any, begin: str = "first_stage_model.") -> dict[str, Tensor]:
    last = len(model.config.block_out_channels) - 1

    def name_of(name: str) -> str:
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
        name = re.sub(r"up_blocks\.(\d+)\.", lambda match: f"up.{last - int(match[1])}.", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
        return replaced(
            name,
            {
                ".resnets.": ".block.",
                "down_blocks.": "down.",
                "samplers.0.": "sample.",
                "conv_shortcut": "nin_shortcut",
                "conv_norm_out": "norm_out",
                "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
                "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
                "mid_block.attentions.0.to_": "mid.attn_1.",
            },
        )

    return {
        begin + name_of(name): t[:, :, None, None] if ".attentions.0." in name and t.ndim == 2 else t
        for name, t in model.state_dict().items()
    }


def clip(model: Any, begin: str) -> dict[str, Tensor]:
    """As transformers named it, with the table of positions that older versions kept."""
    state = model.state_dict()
    plain = {n.removeprefix("text_model."): t for n, t in state.items() if n != "text_projection.weight"}
    count = len(plain["embeddings.position_embedding.weight"])
    plain["embeddings.position_ids"] = torch.arange(count)[None]
    return {f"{begin}text_model.{name}": tensor for name, tensor in plain.items()}


def open_clip(model: Any, begin: str) -> dict[str, Tensor]:
    """With query, key and value in one, as OpenCLIP has them."""
    table = {
        "embeddings.token_embedding.": "token_embedding.",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.": "ln_final.",
        "encoder.layers.": "transformer.resblocks.",
        "layer_norm": "ln_",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.": "attn.",
    }
    out: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for ours, tensor in model.state_dict().items():
        name = replaced(ours.removeprefix("text_model."), table)
        match = re.match(r"(.*attn)\.([qkv])_proj\.(weight|bias)", name)
        if match:
            joined.setdefault(f"{begin}{match[1]}.in_proj_{match[3]}", {})[match[2]] = tensor
        elif name == "text_projection.weight":
            out[f"{begin}text_projection"] = tensor.T.contiguous()
        else:
            out[begin + name] = tensor
    return out | {name: torch.cat([parts[k] for k in "qkv"]) for name, parts in joined.items()}


def together(state: State, name: str, *layers: str) -> dict[str, Tensor]:
    """Several linear layers as one, with a bias if they have one."""
    kinds = [kind for kind in ("weight", "bias") if f"{layers[0]}.{kind}" in state]
    return {f"{name}.{kind}": torch.cat([state[f"{layer}.{kind}"] for layer in layers]) for kind in kinds}


def turned(tensor: Tensor) -> Tensor:
    """Scale and shift to shift and scale."""
    scale, shift = tensor.chunk(2)
    return torch.cat([shift, scale])


def moved(state: State, table: Mapping[str, str], turn: tuple[str, ...] = ()) -> dict[str, Tensor]:
    out = {}
    for ours, theirs in table.items():
        for name, tensor in state.items():
            if name.startswith(ours):
                out[theirs + name.removeprefix(ours)] = turned(tensor) if ours in turn else tensor
    return out


def sd3(model: Any, begin: str = NETWORK) -> dict[str, Tensor]:
    state, last = model.state_dict(), model.config.num_layers - 1
    table = {
        "pos_embed.pos_embed": "pos_embed",
        "pos_embed.proj.": "x_embedder.proj.",
        "time_text_embed.timestep_embedder.linear_1.": "t_embedder.mlp.0.",
        "time_text_embed.timestep_embedder.linear_2.": "t_embedder.mlp.2.",
        "time_text_embed.text_embedder.linear_1.": "y_embedder.mlp.0.",
        "time_text_embed.text_embedder.linear_2.": "y_embedder.mlp.2.",
        "context_embedder.": "context_embedder.",
        "proj_out.": "final_layer.linear.",
        "norm_out.linear.": "final_layer.adaLN_modulation.1.",
    }
    turn = ("norm_out.linear.", f"transformer_blocks.{last}.norm1_context.linear.")
    out: dict[str, Tensor] = {}
    for number in range(last + 1):
        ours, theirs = f"transformer_blocks.{number}.", f"joint_blocks.{number}."
        for kind, attention, norm, feed, to_out, qk in (
            ("x_block", ("attn.to_q", "attn.to_k", "attn.to_v"), "norm1.", "ff.", "attn.to_out.0.", "attn.norm_"),
            (
                "context_block",
                ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
                "norm1_context.",
                "ff_context.",
                "attn.to_add_out.",
                "attn.norm_added_",
            ),
        ):
            block = f"{theirs}{kind}."
            out |= together(state, f"{block}attn.qkv", *(ours + layer for layer in attention))
            table |= {
                f"{ours}{norm}linear.": f"{block}adaLN_modulation.1.",
                f"{ours}{feed}net.0.proj.": f"{block}mlp.fc1.",
                f"{ours}{feed}net.2.": f"{block}mlp.fc2.",
                ours + to_out: f"{block}attn.proj.",
                f"{ours}{qk}q.": f"{block}attn.ln_q.",
                f"{ours}{qk}k.": f"{block}attn.ln_k.",
            }
        if f"{ours}attn2.to_q.weight" in state:
            block = f"{theirs}x_block.attn2."
            out |= together(state, f"{block}qkv", *(f"{ours}attn2.to_{which}" for which in "qkv"))
            table |= {
                f"{ours}attn2.to_out.0.": f"{block}proj.",
                f"{ours}attn2.norm_q.": f"{block}ln_q.",
                f"{ours}attn2.norm_k.": f"{block}ln_k.",
            }
    return {begin + name: tensor for name, tensor in (out | moved(state, table, turn)).items()}


def flux(model: Any, begin: str = "") -> dict[str, Tensor]:
    """FLUX.1, FLUX.2 and Chroma."""
    state, out = model.state_dict(), {}
    table = {
        "time_guidance_embed.timestep_embedder.linear_1.": "time_in.in_layer.",
        "time_guidance_embed.timestep_embedder.linear_2.": "time_in.out_layer.",
        "time_guidance_embed.guidance_embedder.linear_1.": "guidance_in.in_layer.",
        "time_guidance_embed.guidance_embedder.linear_2.": "guidance_in.out_layer.",
        "double_stream_modulation_img.linear.": "double_stream_modulation_img.lin.",
        "double_stream_modulation_txt.linear.": "double_stream_modulation_txt.lin.",
        "single_stream_modulation.linear.": "single_stream_modulation.lin.",
        "distilled_guidance_layer.in_proj.": "distilled_guidance_layer.in_proj.",
        "distilled_guidance_layer.out_proj.": "distilled_guidance_layer.out_proj.",
        "time_text_embed.timestep_embedder.linear_1.": "time_in.in_layer.",
        "time_text_embed.timestep_embedder.linear_2.": "time_in.out_layer.",
        "time_text_embed.text_embedder.linear_1.": "vector_in.in_layer.",
        "time_text_embed.text_embedder.linear_2.": "vector_in.out_layer.",
        "time_text_embed.guidance_embedder.linear_1.": "guidance_in.in_layer.",
        "time_text_embed.guidance_embedder.linear_2.": "guidance_in.out_layer.",
        "context_embedder.": "txt_in.",
        "x_embedder.": "img_in.",
        "proj_out.": "final_layer.linear.",
        "norm_out.linear.": "final_layer.adaLN_modulation.1.",
    }
    for number in range(model.config.num_layers):
        ours, theirs = f"transformer_blocks.{number}.", f"double_blocks.{number}."
        out |= together(state, f"{theirs}img_attn.qkv", *(f"{ours}attn.to_{which}" for which in "qkv"))
        out |= together(state, f"{theirs}txt_attn.qkv", *(f"{ours}attn.add_{which}_proj" for which in "qkv"))
        table |= {
            f"{ours}norm1.linear.": f"{theirs}img_mod.lin.",
            f"{ours}norm1_context.linear.": f"{theirs}txt_mod.lin.",
            f"{ours}attn.norm_q.weight": f"{theirs}img_attn.norm.query_norm.scale",
            f"{ours}attn.norm_k.weight": f"{theirs}img_attn.norm.key_norm.scale",
            f"{ours}attn.norm_added_q.weight": f"{theirs}txt_attn.norm.query_norm.scale",
            f"{ours}attn.norm_added_k.weight": f"{theirs}txt_attn.norm.key_norm.scale",
            f"{ours}attn.to_out.0.": f"{theirs}img_attn.proj.",
            f"{ours}attn.to_add_out.": f"{theirs}txt_attn.proj.",
            f"{ours}ff.net.0.proj.": f"{theirs}img_mlp.0.",
            f"{ours}ff.net.2.": f"{theirs}img_mlp.2.",
            f"{ours}ff.linear_in.": f"{theirs}img_mlp.0.",
            f"{ours}ff.linear_out.": f"{theirs}img_mlp.2.",
            f"{ours}ff_context.net.0.proj.": f"{theirs}txt_mlp.0.",
            f"{ours}ff_context.net.2.": f"{theirs}txt_mlp.2.",
            f"{ours}ff_context.linear_in.": f"{theirs}txt_mlp.0.",
            f"{ours}ff_context.linear_out.": f"{theirs}txt_mlp.2.",
        }
    for number in range(model.config.num_single_layers):
        ours, theirs = f"single_transformer_blocks.{number}.", f"single_blocks.{number}."
        layers = (f"{ours}attn.to_q", f"{ours}attn.to_k", f"{ours}attn.to_v", f"{ours}proj_mlp")
        out |= together(state, f"{theirs}linear1", *layers)
        table |= {
            f"{ours}norm.linear.": f"{theirs}modulation.lin.",
            f"{ours}attn.norm_q.weight": f"{theirs}norm.query_norm.scale",
            f"{ours}attn.norm_k.weight": f"{theirs}norm.key_norm.scale",
            f"{ours}proj_out.": f"{theirs}linear2.",
            f"{ours}attn.to_qkv_mlp_proj.": f"{theirs}linear1.",
            f"{ours}attn.to_out.": f"{theirs}linear2.",
        }
    for number in range(getattr(model.config, "approximator_layers", 0)):
        layers = "distilled_guidance_layer"
        table |= {
            f"{layers}.layers.{number}.linear_1.": f"{layers}.layers.{number}.in_layer.",
            f"{layers}.layers.{number}.linear_2.": f"{layers}.layers.{number}.out_layer.",
            f"{layers}.norms.{number}.weight": f"{layers}.norms.{number}.scale",
        }
    return {begin + name: tensor for name, tensor in (out | moved(state, table, ("norm_out.linear.",))).items()}


def qwen_image(model: Any) -> dict[str, Tensor]:
    """Its first code has the names of diffusers; ComfyUI puts a prefix before them."""
    return {NETWORK + name: tensor for name, tensor in model.state_dict().items()}


def qwen_image21(model: Any) -> dict[str, Tensor]:
    """With the gate and what it gates in one, gate first, as ComfyUI has them."""
    state = model.state_dict()
    out = {NETWORK + name: tensor for name, tensor in state.items() if not re.search(r"mlp\.(gate_layer|proj)", name)}
    for number in range(model.config.num_layers):
        layer = f"transformer_blocks.{number}.img_mlp"
        out |= together(state, f"{NETWORK}{layer}.gate_up", f"{layer}.gate_layer", f"{layer}.proj")
    return out


def z_image(model: Any) -> dict[str, Tensor]:
    state, table = model.state_dict(), {"all_x_embedder.2-1.": "x_embedder.", "all_final_layer.2-1.": "final_layer."}
    table |= {".attention.to_out.0.": ".attention.out.", "attention.norm_": "attention."}
    layers = [name.removesuffix("to_q.weight") for name in state if name.endswith(".attention.to_q.weight")]
    out = {}
    for layer in layers:
        out |= together(state, f"{layer}qkv", *(f"{layer}to_{which}" for which in "qkv"))
    for name, tensor in state.items():
        if not re.search(r"attention\.to_[qkv]\.", name):
            out[re.sub(r"attention\.([qk])\.", r"attention.\1_norm.", replaced(name, table))] = tensor
    return out


def krea2(model: Any) -> dict[str, Tensor]:
    begin = {
        "img_in.": "first.",
        "time_embed.linear_1.": "tmlp.0.",
        "time_embed.linear_2.": "tmlp.2.",
        "time_mod_proj.": "tproj.1.",
        "txt_in.norm.weight": "txtmlp.0.scale",
        "txt_in.linear_1.": "txtmlp.1.",
        "txt_in.linear_2.": "txtmlp.3.",
        "text_fusion.": "txtfusion.",
        "transformer_blocks.": "blocks.",
        "final_layer.linear.": "last.linear.",
        "final_layer.norm.weight": "last.norm.scale",
        "final_layer.scale_shift_table": "last.modulation.lin",
    }
    within = {
        ".attn.to_q.": ".attn.wq.",
        ".attn.to_k.": ".attn.wk.",
        ".attn.to_v.": ".attn.wv.",
        ".attn.to_out.0.": ".attn.wo.",
        ".attn.to_gate.": ".attn.gate.",
        ".attn.norm_q.weight": ".attn.qknorm.qnorm.scale",
        ".attn.norm_k.weight": ".attn.qknorm.knorm.scale",
        ".ff.": ".mlp.",
        ".norm1.weight": ".prenorm.scale",
        ".norm2.weight": ".postnorm.scale",
        ".scale_shift_table": ".mod.lin",
    }
    named = {replaced(name, within): tensor for name, tensor in moved(model.state_dict(), begin).items()}
    return {name: tensor.flatten() if name.endswith(".mod.lin") else tensor for name, tensor in named.items()}


def lumina2(model: Any) -> dict[str, Tensor]:
    """With a norm that its first code does not use."""
    state = model.state_dict()
    begin = {
        "time_caption_embed.caption_embedder.": "cap_embedder.",
        "time_caption_embed.timestep_embedder.linear_1.": "t_embedder.mlp.0.",
        "time_caption_embed.timestep_embedder.linear_2.": "t_embedder.mlp.2.",
        "norm_out.linear_1.": "final_layer.adaLN_modulation.1.",
        "norm_out.linear_2.": "final_layer.linear.",
        "x_embedder.": "x_embedder.",
    }
    within = {
        ".attn.to_out.0.": ".attention.out.",
        ".attn.norm_q.": ".attention.q_norm.",
        ".attn.norm_k.": ".attention.k_norm.",
        ".feed_forward.linear_": ".feed_forward.w",
        ".norm1.linear.": ".adaLN_modulation.1.",
        ".norm1.norm.": ".attention_norm1.",
        ".norm1.": ".attention_norm1.",
        ".norm2.": ".attention_norm2.",
    }
    out = moved(state, begin) | {"norm_final.weight": torch.ones(model.config.hidden_size)}
    for name, tensor in state.items():
        if name.endswith(".attn.to_q.weight"):
            layer = name.removesuffix(".attn.to_q.weight")
            out |= together(state, f"{layer}.attention.qkv", *(f"{layer}.attn.to_{which}" for which in "qkv"))
        elif name.startswith(("layers.", "noise_refiner.", "context_refiner.")) and not re.search(r"to_[kv]\.", name):
            out[replaced(name, within)] = tensor
    return out


def sana(model: Any) -> dict[str, Tensor]:
    """With the tables of positions and of the empty caption, which diffusers does not read."""
    state, width = model.state_dict(), model.config.num_attention_heads * model.config.attention_head_dim
    table = {
        "patch_embed.proj.": "x_embedder.proj.",
        "time_embed.emb.timestep_embedder.linear_1.": "t_embedder.mlp.0.",
        "time_embed.emb.timestep_embedder.linear_2.": "t_embedder.mlp.2.",
        "time_embed.linear.": "t_block.1.",
        "caption_projection.linear_1.": "y_embedder.y_proj.fc1.",
        "caption_projection.linear_2.": "y_embedder.y_proj.fc2.",
        "caption_norm.": "attention_y_norm.",
        "proj_out.": "final_layer.linear.",
        "scale_shift_table": "final_layer.scale_shift_table",
    }
    out = {
        "pos_embed": torch.zeros(1, model.config.sample_size**2, width),
        "y_embedder.y_embedding": torch.zeros(300, model.config.caption_channels),
    }
    for number in range(model.config.num_layers):
        ours, theirs = f"transformer_blocks.{number}.", f"blocks.{number}."
        out |= together(state, f"{theirs}attn.qkv", *(f"{ours}attn1.to_{which}" for which in "qkv"))
        out |= together(state, f"{theirs}cross_attn.kv_linear", f"{ours}attn2.to_k", f"{ours}attn2.to_v")
        table |= {
            f"{ours}scale_shift_table": f"{theirs}scale_shift_table",
            f"{ours}attn1.to_out.0.": f"{theirs}attn.proj.",
            f"{ours}attn1.norm_q.": f"{theirs}attn.q_norm.",  # from version 1.5 on
            f"{ours}attn1.norm_k.": f"{theirs}attn.k_norm.",
            f"{ours}attn2.norm_q.": f"{theirs}cross_attn.q_norm.",
            f"{ours}attn2.norm_k.": f"{theirs}cross_attn.k_norm.",
            f"{ours}attn2.to_q.": f"{theirs}cross_attn.q_linear.",
            f"{ours}attn2.to_out.0.": f"{theirs}cross_attn.proj.",
            f"{ours}ff.conv_inverted.": f"{theirs}mlp.inverted_conv.conv.",
            f"{ours}ff.conv_depth.": f"{theirs}mlp.depth_conv.conv.",
            f"{ours}ff.conv_point.": f"{theirs}mlp.point_conv.conv.",
        }
    return out | moved(state, table)


def _sd1(pipe: Any) -> dict[str, Tensor]:
    return unet(pipe.unet) | vae(pipe.vae) | clip(pipe.text_encoder, "cond_stage_model.transformer.")


def _sdxl(pipe: Any) -> dict[str, Tensor]:
    first = clip(pipe.text_encoder, "conditioner.embedders.0.transformer.")
    return unet(pipe.unet) | vae(pipe.vae) | first | open_clip(pipe.text_encoder_2, "conditioner.embedders.1.model.")


def _sd3(pipe: Any) -> dict[str, Tensor]:
    """With its encoders, as the files are that name them so."""
    second = clip(pipe.text_encoder_2, "text_encoders.clip_g.transformer.")
    second["text_encoders.clip_g.transformer.text_projection.weight"] = pipe.text_encoder_2.text_projection.weight
    third = {f"text_encoders.t5xxl.transformer.{n}": t for n, t in pipe.text_encoder_3.state_dict().items()}
    del third["text_encoders.t5xxl.transformer.encoder.embed_tokens.weight"]  # the table that it shares
    return (
        sd3(pipe.transformer)
        | vae(pipe.vae)
        | clip(pipe.text_encoder, "text_encoders.clip_l.transformer.")
        | second
        | third
    )


def _flux(pipe: Any) -> dict[str, Tensor]:
    """The network alone, as Black Forest Labs give it."""
    return flux(pipe.transformer)


WHOLE: dict[str, Callable[[Any], dict[str, Tensor]]] = {
    "HiDreamImagePipeline": lambda pipe: qwen_image(pipe.transformer),
    "Krea2Pipeline": lambda pipe: krea2(pipe.transformer),
    "Lumina2Pipeline": lambda pipe: lumina2(pipe.transformer),
    "QwenImage21Pipeline": lambda pipe: qwen_image21(pipe.transformer),
    "QwenImagePipeline": lambda pipe: qwen_image(pipe.transformer),
    "SanaPipeline": lambda pipe: sana(pipe.transformer),
    "StableDiffusionPipeline": _sd1,
    "StableDiffusionXLPipeline": _sdxl,
    "StableDiffusion3Pipeline": _sd3,
    "ChromaPipeline": _flux,
    "Flux2KleinPipeline": _flux,
    "Flux2Pipeline": _flux,
    "FluxPipeline": _flux,
    "ZImagePipeline": lambda pipe: z_image(pipe.transformer),
}


def original(pipe: Any) -> dict[str, Tensor]:
    """A pipeline's tensors under the names of a single file."""
    return {name: tensor.clone().contiguous() for name, tensor in WHOLE[type(pipe).__name__](pipe).items()}
