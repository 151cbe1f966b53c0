"""Write what `squisher fisher` reads: one capture file for each batch of a PyTorch network.

    from capture import capture
    net.eval()
    for i, (x, y) in enumerate(loader):
        capture(net, x, f"capture-{i:05}.safetensors", labels="data", target=y)

Hooks record every layer's input and the gradient at its output, of the *summed* cross-entropy. Needs torch and safetensors.
"""

import json

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file


def describe(module):
    """What the file says of a layer, or None for a module without parameters that squisher knows."""
    if isinstance(module, nn.Linear):
        return {"kind": "linear"}
    if isinstance(module, nn.Embedding):
        return {"kind": "embedding", "rows": module.num_embeddings}
    if isinstance(module, nn.modules.conv._ConvNd):
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            raise ValueError(f"{module}: only numbers of zeros as padding")
        info = {key: list(getattr(module, name)) for key, name in
                (("kernel", "kernel_size"), ("stride", "stride"), ("padding", "padding"), ("dilation", "dilation"))}
        if module.transposed:
            return {"kind": "conv_transpose", **info, "groups": module.groups, "output_padding": list(module.output_padding)}
        return {"kind": "conv", **info, "groups": module.groups}
    if getattr(module, "weight", None) is None:
        return None
    if isinstance(module, nn.LayerNorm):
        return {"kind": "layer_norm", "eps": module.eps, "axes": len(module.normalized_shape)}
    if isinstance(module, nn.RMSNorm):
        eps = torch.finfo(module.weight.dtype).eps if module.eps is None else module.eps
        return {"kind": "rms_norm", "eps": eps, "axes": len(module.normalized_shape)}
    if isinstance(module, nn.GroupNorm):
        return {"kind": "group_norm", "eps": module.eps, "groups": module.num_groups}
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return {"kind": "batch_norm", "eps": module.eps}
    return None


def capture(net, x, path, labels="data", target=None, draws=1, generator=None, dtype=torch.float32):
    """One forward pass, the backward pass of the summed loss, one file.

    labels: "data" (target [n] class ids), "sampled" (draws labels a sample from the model, each of weight 1/draws), or "all" (every
    class in turn, weighted by its probability). dtype: torch.float32, or bfloat16 to halve the file.
    """
    if net.training:
        raise ValueError("capture in evaluation mode: call net.eval() first")
    with torch.no_grad():
        p = F.softmax(net(x).double(), dim=-1)
    n, classes = p.shape
    weight = None
    if labels == "sampled":
        target = torch.multinomial(p, draws, replacement=True, generator=generator).reshape(-1)
        x, weight = x.repeat_interleave(draws, 0), torch.full((n * draws,), 1.0 / draws)
    elif labels == "all":
        target = torch.arange(classes, device=x.device).repeat(n)
        x, weight = x.repeat_interleave(classes, 0), p.reshape(-1).float()
    elif labels != "data":
        raise ValueError(f'labels is "{labels}", expected data, sampled or all')

    uses, handles, described = {}, [], {}
    owner = {}
    for name, module in net.named_modules():
        info = describe(module)
        if info is None:
            continue
        if owner.setdefault(module.weight, name) != name:
            raise ValueError(f"{name} and {owner[module.weight]} share a weight: squisher adds the uses of one layer only")
        described[name] = {**info, "bias": getattr(module, "bias", None) is not None}

        def hook(module, args, output, name=name):
            use = [args[0].detach(), None]
            uses.setdefault(name, []).append(use)
            output.register_hook(lambda gradient: use.__setitem__(1, gradient.detach().clone()))

        handles.append(module.register_forward_hook(hook))
    try:
        logits = net(x)
        logits.retain_grad()
        F.cross_entropy(logits, target, reduction="sum").backward()
    finally:
        for handle in handles:
            handle.remove()
    net.zero_grad()

    tensors = {"logit_grad": logits.grad.to(dtype)}
    modules = dict(net.named_modules())
    for name, found in uses.items():
        for i, (a, b) in enumerate(found):
            suffix = "" if len(found) == 1 else f".{i}"
            tensors[f"{name}.input{suffix}"] = a.to(dtype if a.is_floating_point() else torch.int64)
            if b is None:
                raise ValueError(f"{name}: no gradient reached its output; freeze nothing between it and the loss")
            tensors[f"{name}.grad_output{suffix}"] = b.to(dtype)
        if described[name]["kind"] == "batch_norm":
            for what in ("running_mean", "running_var"):
                tensors[f"{name}.{what}"] = getattr(modules[name], what).float()
    if weight is not None:
        tensors["sample_weight"] = weight
    metadata = {"format": "squisher-capture-1", "loss_reduction": "sum", "labels": labels,
                "layers": json.dumps({name: described[name] for name in uses})}
    save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, str(path), metadata=metadata)
