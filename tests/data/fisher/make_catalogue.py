#!/usr/bin/env python3
"""Write the catalogue of small networks that tests/fisher.rs goes through: one folder each, with captures by examples/pytorch/capture.py and
the Fishers of one autograd call a sample and label in float64.

The shapes are those that BackPACK tests its per-sample squares on (Dangel et al. 2020): linear layers with any number of extra axes, convolutions and transposed
ones of one to three dimensions with stride, padding and dilation, norms, embeddings with repeated ids, recurrent networks as uses of
one layer. Groups, odd sizes, layers used at several sizes and parameters that layers share are added.

usage: make_catalogue.py OUTDIR          (torch and safetensors; the folders beside this script were written with torch 2.15)
"""
import copy
import sys
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[3] / "examples/pytorch"))
from capture import capture, label, residual

out = Path(sys.argv[1])
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
POOL = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def head(dim, classes=3):
    return [nn.Sigmoid(), POOL[dim](2), nn.Flatten(), nn.LazyLinear(classes)]


class Recurrent(nn.Module):
    """h <- tanh(W x_t + U h), five times: each layer has as many uses."""

    def __init__(self):
        super().__init__()
        self.input, self.state = nn.Linear(6, 3), nn.Linear(3, 3)

    def forward(self, x):
        h = torch.zeros(x.shape[0], 3, dtype=x.dtype)
        for t in range(x.shape[1]):
            h = torch.tanh(self.input(x[:, t]) + self.state(h))
        return h


class LongShortTerm(nn.Module):
    """An LSTM cell written with linear layers."""

    def __init__(self):
        super().__init__()
        self.input, self.state = nn.Linear(3, 16), nn.Linear(4, 16, bias=False)

    def forward(self, x):
        h = c = torch.zeros(x.shape[0], 4, dtype=x.dtype)
        for t in range(x.shape[1]):
            i, f, g, o = (self.input(x[:, t]) + self.state(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return h


class Residual(nn.Module):
    """Blocks as ResNets have them, with a strided shortcut."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
        self.conv, self.norm = nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)
        self.shortcut, self.head = nn.Conv2d(4, 6, 1, 2, bias=False), nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.relu(self.norm(self.conv(x)) + self.shortcut(x))
        return self.head(x.mean((2, 3)))


class SeveralSizes(nn.Module):
    """One convolution, and norms behind it, on an image and on its half."""

    def __init__(self):
        super().__init__()
        self.conv, self.group, self.batch = nn.Conv2d(2, 4, 3, 1, 1), nn.GroupNorm(2, 4), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        sizes = (x, F.avg_pool2d(x, 2))
        return self.head(sum(torch.tanh(self.batch(self.group(self.conv(x)))).mean((2, 3)) for x in sizes))


class TiedLinear(nn.Module):
    """Two linear layers with one weight, of which one has the other's bias, too; a third with the bias of the head."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3), nn.Linear(5, 3)
        self.second.weight, self.second.bias, self.third.bias = self.first.weight, self.first.bias, self.head.bias

    def forward(self, x):
        h = torch.tanh(self.second(torch.tanh(self.first(x))))
        return (self.head(h) + torch.sin(self.third(x))).mean(1)


class TiedTable(nn.Module):
    """A language model in small: the table of the embedding, whose row 2 is padding, is the weight of the output, too."""

    def __init__(self):
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(6, 4, padding_idx=2), nn.LayerNorm(4), nn.Linear(4, 6)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.norm(torch.tanh(self.table(x)).cumsum(1)))


def real(*shape):
    return lambda: torch.randn(*shape)


def ids(rows, *shape):
    return lambda: torch.randint(0, rows, shape)


def sequential(*layers):
    return lambda: nn.Sequential(*layers)


def linear_axes(*axes):
    return lambda: nn.Sequential(nn.Linear(5, 3), nn.Sigmoid(), nn.Linear(3, 2), nn.Flatten())


cases = {
    "linear": (sequential(nn.Linear(10, 5)), real(3, 10)),
    "linear_two": (sequential(nn.Linear(10, 7), nn.Linear(7, 5)), real(3, 10)),
    "linear_relu": (sequential(nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 5)), real(3, 10)),
    "linear_sigmoid_gaussian": (sequential(nn.Linear(10, 7), nn.Sigmoid(), nn.Linear(7, 5)), real(3, 10)),
    "linear_one_sample": (sequential(nn.Linear(7, 3)), real(1, 7)),
    "linear_one_input": (sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 2)), real(5, 1)),
    "linear_one_output_gaussian": (sequential(nn.Linear(6, 1)), real(5, 6)),
    "linear_one_position": (linear_axes(), real(3, 1, 5)),
    "rnn": (Recurrent, real(4, 5, 6)),
    "lstm": (LongShortTerm, real(3, 4, 3)),
    "embedding": (sequential(nn.Embedding(5, 3)), ids(5, 6)),
    "embedding_repeats": (sequential(nn.Embedding(3, 5), nn.Flatten(), nn.Linear(20, 4)), ids(3, 4, 2, 2)),
    "embedding_bag_of_ids": (sequential(nn.Embedding(4, 3), nn.Flatten()), ids(2, 4, 7)),
    "tied_linear": (TiedLinear, real(4, 3, 5)),
    "tied_table": (TiedTable, ids(6, 4, 7)),
    "residual": (Residual, real(2, 3, 7, 7)),
    "several_sizes": (SeveralSizes, real(3, 2, 6, 6)),
    "layer_norm": (sequential(nn.LayerNorm(6), nn.Linear(6, 4)), real(4, 6)),
    "layer_norm_two_axes": (sequential(nn.LayerNorm([3, 4]), nn.Flatten(), nn.Linear(12, 3)), real(3, 3, 4)),
    "layer_norm_positions": (sequential(nn.LayerNorm(5), nn.Flatten(), nn.Linear(15, 3)), real(3, 3, 5)),
    "group_norm_one_group": (sequential(nn.GroupNorm(1, 4), nn.Flatten(), nn.Linear(12, 3)), real(3, 4, 3)),
    "group_norm_instance": (sequential(nn.GroupNorm(4, 4), nn.Flatten(), nn.Linear(24, 3)), real(3, 4, 2, 3)),
    "batch_norm_plain": (sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), real(3, 4)),
}
for axes in ((4,), (4, 2), (4, 2, 3)):
    for loss in ("", "_gaussian"):
        cases[f"linear_axes_{len(axes)}{loss}"] = (linear_axes(), real(3, *axes, 5))
# in, out, kernel, stride, padding, dilation, groups, bias
SIDES = {1: lambda n: (n,), 2: lambda n: (n, n), 3: lambda n: (2 + n % 7, n, n)}
for dim in (1, 2, 3):
    small = 7 if dim < 3 else 5
    for i, (side, args) in enumerate((
            (small, (3, 2, 2)), (small, (2, 3, 2, 2, 0, 2)), (small, (3, 2, 2, 2, 1)), (8, (3, 6, 2, 4, 2, 3)),
            (small, (3, 2, 2, 4, 2, 1, 1, False)), (small, (4, 6, 3, 2, 1, 1, 2)), (small, (3, 6, 2, 1, 0, 1, 3)),
            (small, (4, 4, 3, 1, 1, 2, 4)), (small, (1, 1, 1)))):
        x = real(3, args[0], *SIDES[dim](side))
        cases[f"conv{dim}d_{i}"] = (lambda d=dim, a=args: nn.Sequential(CONV[d](*a), *head(d)), x)
    # in, out, kernel, stride, padding, output_padding, groups, bias, dilation
    for i, args in enumerate(((3, 2, 2), (2, 3, 2, 2, 1), (3, 2, 3, 2, 1, 1), (3, 2, 2, 2, 0, 0, 1, False, 2), (2, 4, 2, 1, 1, 0, 2, True, 3),
                              (4, 4, 3, 3, 0, 2, 4, True))):
        x = real(3, args[0], *SIDES[dim](3 if dim == 3 else 4))
        cases[f"conv_transpose{dim}d_{i}"] = (lambda d=dim, a=args: nn.Sequential(TRANSPOSED[d](*a), *head(d)), x)
    cases[f"batch_norm{dim}d"] = (lambda d=dim: nn.Sequential(CONV[d](2, 3, 2), NORM[d](3), *head(d)), real(3, 2, *SIDES[dim](5)))

MODEL_LABELS = {"linear_relu", "linear_sigmoid_gaussian", "linear_axes_2", "linear_axes_1_gaussian", "conv2d_2", "embedding_repeats", "rnn",
                "several_sizes", "tied_linear"}
JOINT = {"several_sizes", "residual", "rnn", "tied_linear", "tied_table"}


def squares(net, x, target, weight, gaussian):
    """(sum over samples of weight times squared gradient, squared sum of gradients): one backward pass each, in float64."""
    net = copy.deepcopy(net).double()
    x = x.double() if x.is_floating_point() else x
    total = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    joint = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for n in range(x.shape[0]):
        net.zero_grad()
        z = net(x[n:n + 1])
        loss = (z * target[n:n + 1].double()).sum() if gaussian else F.cross_entropy(z.movedim(-1, 1), target[n:n + 1], reduction="sum")
        loss.backward()
        for name, p in net.named_parameters():
            total[name] += (1.0 if weight is None else weight[n].double()) * p.grad**2
            joint[name] += p.grad
    return total, {name: g**2 for name, g in joint.items()}


for index, (name, (build, inputs)) in enumerate(sorted(cases.items())):
    torch.manual_seed(index)
    net, x = build(), inputs()
    net(x)  # lazy layers learn their sizes
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, 0, 0.3), nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight), nn.init.normal_(module.bias)
    net.eval()
    gaussian = name.endswith("gaussian")
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        z = net(x)
    data = torch.randn_like(z) if gaussian else torch.randint(0, z.shape[-1], z.shape[:-1])
    expected = {}
    for labels in ("data", "sampled", "all") if name in MODEL_LABELS else ("data",):
        seeded = lambda: torch.Generator().manual_seed(index)
        capture(net, x, folder / f"{labels}.safetensors", labels, data, draws=2, generator=seeded(),
                loss="gaussian" if gaussian else "cross_entropy")
        labelled = (residual if gaussian else label)(net, x, labels, data, 2, seeded())
        total, joint = squares(net, *labelled, gaussian)
        expected |= {f"{labels}/{parameter}": value.float() for parameter, value in total.items()}
        if labels == "data" and name in JOINT:
            expected |= {f"joint/{parameter}": value.float() for parameter, value in joint.items()}
    save_file(expected, str(folder / "expected.safetensors"))
