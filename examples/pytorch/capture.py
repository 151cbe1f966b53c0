"""Write what `squisher fisher` and `squisher step` read: one capture file for each batch of a PyTorch network.

    from capture import capture
    net.eval()
    for i, (x, y) in enumerate(loader):
        capture(net, x, f"capture-{i:05}.safetensors", labels="data", target=y)

Hooks record every layer's input and the gradient at its output, of the *summed* cross-entropy. A network for language has logits
`[n, t, classes]` and targets `[n, t]`: the sample is then the whole sequence, and its loss is the sum over positions. Parameters that
need no gradient are left out; parameters that no known layer owns are named in a warning. Needs torch and safetensors.
"""

import inspect
import json
import warnings

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.autograd.graph import get_gradient_edge


def describe(module):
    """What the file says of a layer, or None for a module without parameters that squisher knows."""
    if type(module).__name__ == "Conv1D":
        raise ValueError(f"{module}: GPT-2's Conv1D is a linear layer whose weight is transposed, which squisher does not know; put "
                         "an nn.Linear in its place (weight.T), or freeze it (requires_grad_(False)) to leave it out")
    if isinstance(module, nn.Linear):
        return {"kind": "linear"}
    if isinstance(module, nn.Embedding):
        return {"kind": "embedding", "rows": module.num_embeddings}
    if isinstance(module, nn.modules.conv._ConvNd):
        return describe_conv(module)
    if getattr(module, "weight", None) is None:
        return None
    if isinstance(module, nn.LayerNorm):
        return {"kind": "layer_norm", "eps": module.eps, "axes": len(module.normalized_shape)}
    if isinstance(module, nn.RMSNorm) or is_rms_norm(module):
        return describe_rms_norm(module)
    if isinstance(module, nn.GroupNorm):
        return {"kind": "group_norm", "eps": module.eps, "groups": module.num_groups}
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return {"kind": "batch_norm", "eps": module.eps}
    return None


def is_rms_norm(module):
    """A class like transformers' LlamaRMSNorm: weight * x / sqrt(mean(x^2) + eps), or as Gemma's (1 + weight) times that, whose gradient is
    the same. Found by its name and then tried, since a name does not say what a class computes."""
    if not type(module).__name__.endswith(("RMSNorm", "T5LayerNorm")) or module.weight.dim() != 1 or rms_eps(module) is None:
        return False
    with torch.no_grad():
        x = torch.linspace(-1, 2, module.weight.numel(), device=module.weight.device)
        normed = x * torch.rsqrt(x.square().mean() + rms_eps(module))
        weight, got = module.weight.float(), module(x.to(module.weight.dtype)).float()
        number = torch.finfo(module.weight.dtype)
        tolerance = 8 * number.eps * (1 + weight.abs()) * normed.abs() + number.tiny
        return any(bool(((got - w * normed).abs() <= tolerance).all()) for w in (weight, 1 + weight))


def rms_eps(module):
    """What the classes call their epsilon."""
    return next((getattr(module, name) for name in ("variance_epsilon", "eps") if isinstance(getattr(module, name, None), (int, float))), None)


def describe_rms_norm(module):
    eps = rms_eps(module)
    axes = len(module.normalized_shape) if isinstance(module, nn.RMSNorm) else 1
    return {"kind": "rms_norm", "eps": torch.finfo(module.weight.dtype).eps if eps is None else eps, "axes": axes}


def describe_conv(module):
    """A convolution's window. padding="same" is a number where it is the same on both sides."""
    if module.padding_mode != "zeros":
        raise ValueError(f"{module}: squisher knows zeros as padding only")
    kernel, dilation = list(module.kernel_size), list(module.dilation)
    padding = module.padding
    if padding == "valid":
        padding = [0] * len(kernel)
    elif padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation)]
        if any(size % 2 for size in total):
            raise ValueError(f"{module}: pads its two sides differently; squisher knows equal padding only")
        padding = [size // 2 for size in total]
    window = {"kernel": kernel, "stride": list(module.stride), "padding": list(padding), "dilation": dilation, "groups": module.groups}
    if module.transposed:
        return {"kind": "conv_transpose", **window, "output_padding": list(module.output_padding)}
    return {"kind": "conv", **window}


def trained_layers(net):
    """{name: (module, description)} of the layers with a parameter that needs a gradient; warns of parameters outside them."""
    layers = {}
    for name, module in net.named_modules():
        if not any(p.requires_grad for p in module.parameters(recurse=False)):
            continue
        info = describe(module)
        if info is None:
            continue
        if getattr(module, "scale_grad_by_freq", False):
            raise ValueError(f"{name}: its gradient is divided by how often an id occurs, which is not a sum over positions")
        layers[name] = (module, {**info, "bias": getattr(module, "bias", None) is not None})
    return layers


def descriptions(layers, used):
    """What the file says of the layers that were used; of a parameter that several of them share, the first is the owner."""
    owners, said = {}, {}
    for name, (module, info) in layers.items():
        if name not in used:
            continue
        shared = {what: getattr(module, what, None) for what in ("weight", "bias")}
        tied = {what: owners[what, id(p)] for what, p in shared.items() if p is not None and (what, id(p)) in owners}
        owners.update({(what, id(p)): name for what, p in shared.items() if (what, id(p)) not in owners})
        said[name] = {**info, "tied": tied} if tied else info
        if "weight" in tied and (kinds := {info["kind"], said[tied["weight"]]["kind"]}) - {"linear", "embedding"} and len(kinds) > 1:
            raise ValueError(f"{name} and {tied['weight']} share a weight: squisher knows that of layers of one kind, or linear and embedding")
    return said


def warn_of_others(net, recorded):
    """Nothing is left out silently."""
    known = {id(p) for name in recorded for p in net.get_submodule(name).parameters(recurse=False)}
    others = [name for name, p in net.named_parameters() if p.requires_grad and id(p) not in known]
    if others:
        warnings.warn(f"not in the capture, because no layer that squisher knows used them: {', '.join(others)}", stacklevel=3)


def call(net, x):
    """The logits. A dictionary holds keyword arguments, as Hugging Face's models take them."""
    output = net(**x) if isinstance(x, dict) else net(x)
    return getattr(output, "logits", output)


def input_of(module, name, args, kwargs):
    """A layer's input: the first argument, also where it is given by its name, as in self.fc(input=x)."""
    if args:
        return args[0]
    first = next(iter(inspect.signature(module.forward).parameters), None)
    if first not in kwargs:
        raise ValueError(f"{name}: called with {', '.join(kwargs) or 'nothing'}, and its input is its first argument, {first}")
    return kwargs[first]


def repeated(x, times):
    """Every sample `times` times, one after the other."""
    if isinstance(x, dict):
        return {key: value.repeat_interleave(times, 0) for key, value in x.items()}
    return x.repeat_interleave(times, 0)


def label(net, x, labels, target, draws, generator):
    """(x, target, weight): the labels as captured, samples repeated where one has several."""
    if labels == "data":
        if target is None:
            raise ValueError('labels is "data", and target is missing')
        return x, target, None
    if labels not in ("sampled", "all"):
        raise ValueError(f'labels is "{labels}", expected data, sampled or all')
    with torch.no_grad():
        p = F.softmax(call(net, x).double(), dim=-1)
    n, classes = p.shape[0], p.shape[-1]
    if labels == "sampled":
        drawn = torch.multinomial(p.reshape(-1, classes), draws, replacement=True, generator=generator)
        drawn = drawn.reshape(*p.shape[:-1], draws).movedim(-1, 1).flatten(0, 1)
        return repeated(x, draws), drawn, torch.full((n * draws,), 1.0 / draws)
    if p.dim() != 2:
        raise ValueError(f"logits {list(p.shape)}: every class in turn needs one label a sample; use sampled")
    return repeated(x, classes), torch.arange(classes, device=p.device).repeat(n), p.reshape(-1).float()


def residual(net, x, labels, target, draws, generator):
    """(x, z - y, weight) of a regression with y ~ N(z, 1): labelled as in `label`.

    The Hessian of the loss at the outputs is 1, so that "all" are the unit directions. They are sqrt(c) long with weight 1/c, because a
    sample's weights sum to 1.
    """
    if labels not in ("data", "sampled", "all"):
        raise ValueError(f'labels is "{labels}", expected data, sampled or all')
    with torch.no_grad():
        z = call(net, x)
    n, c = z.shape[0], z[0].numel()
    if labels == "data":
        if target is None:
            raise ValueError('labels is "data", and target is missing')
        return x, z - target, None
    if labels == "sampled":
        noise = torch.randn(n * draws, *z.shape[1:], generator=generator).to(z)
        return repeated(x, draws), noise, torch.full((n * draws,), 1.0 / draws)
    directions = c**0.5 * torch.eye(c, device=z.device).repeat(n, 1)
    return repeated(x, c), directions.reshape(n * c, *z.shape[1:]), torch.full((n * c,), 1.0 / c)


def capture(net, x, path, labels="data", target=None, draws=1, generator=None, dtype=torch.float32, loss="cross_entropy"):
    """One forward pass, the backward pass of the summed loss, one file. The parameters' own gradients are not touched.

    labels: "data" (target holds class ids; -100 is ignored), "sampled" (draws labels a sample from the model, each of weight 1/draws),
    or "all" (every class in turn, weighted by its probability). dtype: torch.float32, or bfloat16 to halve the file.
    loss: "cross_entropy", or "gaussian" for a regression with the loss 1/2 |z - target|^2.
    """
    if net.training:
        raise ValueError("capture in evaluation mode: call net.eval() first")
    if loss not in ("cross_entropy", "gaussian"):
        raise ValueError(f'loss is "{loss}", expected cross_entropy or gaussian')
    x, target, weight = (label if loss == "cross_entropy" else residual)(net, x, labels, target, draws, generator)
    layers, uses, handles = trained_layers(net), {}, []
    for name, (module, _) in layers.items():
        def record(module, args, kwargs, output, name=name):
            # Copied, and an edge of the graph: what later changes either tensor in place (ReLU(inplace=True)) must not be seen.
            uses.setdefault(name, []).append((input_of(module, name, args, kwargs).detach().clone(), get_gradient_edge(output)))

        handles.append(module.register_forward_hook(record, with_kwargs=True))
    try:
        logits = call(net, x)
    finally:
        for handle in handles:
            handle.remove()
    warn_of_others(net, uses)
    if loss == "cross_entropy":
        total = F.cross_entropy(logits.movedim(-1, 1), target, reduction="sum")
    else:
        total = (logits * target).sum()  # whose gradient at the outputs is the residual
    edges = [edge for found in uses.values() for _, edge in found]
    gradients = iter(torch.autograd.grad(total, [logits, *edges], allow_unused=True))

    tensors = {"logit_grad": next(gradients).to(dtype)}
    for name, found in uses.items():
        module, info = layers[name]
        for i, (a, _) in enumerate(found):
            suffix = "" if len(found) == 1 else f".{i}"
            tensors[f"{name}.input{suffix}"] = a.to(dtype if a.is_floating_point() else torch.int64)
            b = next(gradients)
            if b is None:
                raise ValueError(f"{name}: its output does not reach the loss; freeze it (requires_grad_(False)) to leave it out")
            if getattr(module, "padding_idx", None) is not None:
                b = b.masked_fill((a == module.padding_idx).unsqueeze(-1), 0)  # PyTorch gives that row no gradient.
            tensors[f"{name}.grad_output{suffix}"] = b.to(dtype, copy=True)
        if info["kind"] == "batch_norm":
            for what in ("running_mean", "running_var"):
                tensors[f"{name}.{what}"] = getattr(module, what).float()
    if weight is not None:
        tensors["sample_weight"] = weight
    metadata = {"format": "squisher-capture-1", "loss_reduction": "sum", "labels": labels,
                "layers": json.dumps(descriptions(layers, uses))}
    save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, str(path), metadata=metadata)
