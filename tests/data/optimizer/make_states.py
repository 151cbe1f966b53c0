#!/usr/bin/env python3
"""Write the optimizer states that tests/optimizer.rs reads and refuses, with real torch optimizers where one can make them.

Each case is a folder: `optimizer.pt`, and for the good ones `model.safetensors` (or `pytorch_model.bin`) and
`expected.safetensors` with the accumulator in float64 under every parameter's name.  Hostile files are lone `.pt` files.

usage: make_states.py OUTDIR          (torch and safetensors; the folders beside this script were written with torch 2.15)
"""
import io, json, os, pickle, struct, sys, zipfile
from pathlib import Path
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file

out = Path(sys.argv[1])


class Net(nn.Module):
    """Two square layers of one shape, so that shapes alone do not tell them apart; a norm; a tied head on request."""

    def __init__(self, tied=False):
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.first = nn.Linear(6, 6)       # defined after `inner`, sorted before it
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)
        if tied:
            self.first.weight = self.inner.weight

    def forward(self, x):
        return self.head(self.norm(torch.tanh(self.first(torch.tanh(self.inner(x))))))


def train(net, opt, steps=5):
    for _ in range(steps):
        opt.zero_grad()
        x = torch.randn(8, 6)
        F.cross_entropy(net(x), torch.randint(0, 3, (8,))).backward()
        opt.step()


def accumulators(net, opt, key="exp_avg_sq"):
    return {n: opt.state[p][key].double().contiguous() for n, p in net.named_parameters() if key in opt.state.get(p, {})}


def case(name, net, state, want, order=None, names=None, bin=False):
    d = out / name
    d.mkdir(parents=True, exist_ok=True)
    torch.save(state, d / "optimizer.pt")
    tensors = {n: p.detach().contiguous() for n, p in net.named_parameters()}
    save_file(tensors, str(d / "model.safetensors"), metadata={"format": "pt"})
    if bin:
        torch.save(net.state_dict(), d / "pytorch_model.bin")
    if names is not None:
        (d / "names.json").write_text(json.dumps(names))
    if want is not None:
        save_file(want, str(d / "expected.safetensors"))


def decay_groups(net, no_decay):
    named = list(net.named_parameters())
    return [{"params": [p for n, p in named if not no_decay(n)], "weight_decay": 0.1},
            {"params": [p for n, p in named if no_decay(n)], "weight_decay": 0.0}]


def names_of(net, opt):
    name_of = {id(p): n for n, p in net.named_parameters()}
    return [name_of[id(p)] for g in opt.param_groups for p in g["params"]]


def good():
    torch.manual_seed(1)
    net = Net()
    opt = torch.optim.AdamW(net.named_parameters(), lr=1e-3)
    train(net, opt)
    want = accumulators(net, opt)
    case("param_names", net, opt.state_dict(), want)

    # The same state without its names: two equal shapes, nothing to tell them apart but the order.
    plain = opt.state_dict()
    for g in plain["param_groups"]:
        del g["param_names"]
    case("equal_shapes", net, plain, want, names=names_of(net, opt), bin=True)
    case("beside_model", net, {"epoch": 3, "model": net.state_dict(), "optimizer": plain}, want)
    case("wrapped", net, {"optimizer_state_dict": opt.state_dict(), "step": 5}, want)

    # Keyed by name, under the prefixes that wrappers add.
    order = names_of(net, opt)
    keyed = {"state": {"_fsdp_wrapped_module._orig_mod." + n: plain["state"][i] for i, n in enumerate(order)},
             "param_groups": [{**plain["param_groups"][0], "params": ["_fsdp_wrapped_module._orig_mod." + n for n in order]}]}
    case("keyed_by_name", net, keyed, want)

    # Step kept in the group, as fused optimizers of others do.
    grouped = {"state": {i: {k: v for k, v in s.items() if k != "step"} for i, s in plain["state"].items()},
               "param_groups": [{**opt.state_dict()["param_groups"][0], "step": 5}]}
    case("step_in_group", net, grouped, want)

    # The Trainer's groups.
    torch.manual_seed(2)
    net = Net()
    opt = torch.optim.AdamW(decay_groups(net, lambda n: "bias" in n or "norm" in n), lr=1e-3)
    train(net, opt)
    case("trainer_groups", net, opt.state_dict(), accumulators(net, opt), names=names_of(net, opt), bin=True)

    # Biases without decay, norms with: every rule about norms has the wrong sizes.
    torch.manual_seed(3)
    net = Net()
    opt = torch.optim.AdamW(decay_groups(net, lambda n: "bias" in n), lr=1e-3)
    train(net, opt)
    case("bias_groups", net, opt.state_dict(), accumulators(net, opt), bin=True)

    # Tied parameters, one frozen, one without a gradient.
    torch.manual_seed(4)
    net = Net(tied=True)
    net.norm.bias.requires_grad_(False)
    opt = torch.optim.AdamW([(n, p) for n, p in net.named_parameters() if p.requires_grad], lr=1e-3)
    unused = nn.Parameter(torch.zeros(7))
    opt.add_param_group({"params": [("unused", unused)]})
    train(net, opt)
    case("tied_and_absent", net, opt.state_dict(), accumulators(net, opt), bin=True)

    # One frozen among equal shapes, which the order of the others still settles.
    torch.manual_seed(13)
    net = Net()
    net.first.weight.requires_grad_(False)
    opt = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-3)
    train(net, opt)
    case("frozen_and_settled", net, opt.state_dict(), accumulators(net, opt), bin=True)

    # A frozen layer among equal shapes: two layouts are possible.
    torch.manual_seed(5)
    net = Net()
    net.first.requires_grad_(False)
    opt = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-3)
    train(net, opt)
    case("frozen_among_equals", net, opt.state_dict(), accumulators(net, opt), names=names_of(net, opt), bin=True)

    # Two groups with decay that no rule makes, the second not in the model's order.
    torch.manual_seed(6)
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.LayerNorm(4, bias=False), nn.LayerNorm(4, bias=False), nn.Linear(4, 4, bias=False))
    opt = torch.optim.AdamW([{"params": [net[0].weight, net[1].weight]}, {"params": [net[3].weight, net[2].weight]}], lr=1e-3)
    for _ in range(3):
        opt.zero_grad(); net(torch.randn(5, 4)).square().mean().backward(); opt.step()
    case("no_rule", net, opt.state_dict(), None, bin=True)

    # Grouped by the number of axes; `bias_table.weight` is a bias by name alone.
    torch.manual_seed(7)
    net = nn.ModuleDict({"bias_table": nn.Linear(4, 4, bias=False), "vector": nn.LayerNorm(4, bias=False),
                         "matrix": nn.Linear(4, 4, bias=False), "scale": nn.LayerNorm(4, bias=False)})
    named = dict(net.named_parameters())
    opt = torch.optim.AdamW([{"params": [named["bias_table.weight"], named["matrix.weight"]], "weight_decay": 0.1},
                             {"params": [named["vector.weight"], named["scale.weight"]], "weight_decay": 0.0}], lr=1e-3)
    for _ in range(3):
        opt.zero_grad()
        y = net["scale"](net["matrix"](net["vector"](net["bias_table"](torch.randn(5, 4)))))
        y.square().mean().backward(); opt.step()
    case("vector_groups", net, opt.state_dict(), accumulators(net, opt), bin=True)

    # Two norms: the order through all groups and "biases last" both fit, and differ.
    torch.manual_seed(14)
    net = nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4))
    opt = torch.optim.AdamW(decay_groups(net, lambda n: "bias" in n), lr=1e-3)
    for _ in range(3):
        opt.zero_grad(); net(torch.randn(5, 4)).square().sum(1).exp().mean().backward(); opt.step()
    case("two_rules", net, opt.state_dict(), accumulators(net, opt), names=names_of(net, opt), bin=True)

    torch.manual_seed(8)
    for name, make, key in [("amsgrad", lambda p: torch.optim.Adam(p, amsgrad=True), "max_exp_avg_sq"),
                            ("coupled", lambda p: torch.optim.Adam(p, weight_decay=0.01), "exp_avg_sq"),
                            ("capturable", lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-3), betas=(torch.tensor(0.8), torch.tensor(0.95)), foreach=False), "exp_avg_sq")]:
        net = Net()
        opt = make(net.named_parameters())
        train(net, opt)
        case(name, net, opt.state_dict(), accumulators(net, opt, key))


def factored():
    torch.manual_seed(9)
    net = Net()
    opt = torch.optim.Adafactor(net.named_parameters(), lr=1e-2)
    train(net, opt)
    want = {}
    for n, p in net.named_parameters():
        s = opt.state[p]
        if "variance" in s:
            want[n] = s["variance"].double()
        else:
            want[n] = s["row_var"].double() @ s["col_var"].double() / s["row_var"].double().mean(dim=-2, keepdim=True)
    case("adafactor_torch", net, opt.state_dict(), want)

    # As transformers and fairseq keep it, three axes included: rows shape[:-1], columns shape[:-2] + shape[-1:].
    net = nn.Module()
    net.conv = nn.Parameter(torch.randn(2, 5, 4))
    net.flat = nn.Parameter(torch.randn(3, 4))
    net.bias = nn.Parameter(torch.randn(4))
    g = {n: torch.rand(p.shape) for n, p in net.named_parameters()}
    g["flat"][:] = 0            # a mean of 0 divides nothing by nothing
    state, want = {}, {}
    for i, (n, p) in enumerate(net.named_parameters()):
        if p.dim() < 2:
            state[i] = {"step": 3, "exp_avg_sq": g[n], "RMS": torch.tensor(1.0)}
            want[n] = g[n].double()
        else:
            r, c = g[n].mean(dim=-1), g[n].mean(dim=-2)
            state[i] = {"step": 3, "exp_avg_sq_row": r, "exp_avg_sq_col": c, "RMS": 0.5}
            r, c = r.double(), c.double()
            v = r.unsqueeze(-1) * c.unsqueeze(-2) / r.mean(dim=-1)[..., None, None]
            want[n] = torch.nan_to_num(v, nan=0.0)
    group = {"lr": None, "eps": (1e-30, 1e-3), "clip_threshold": 1.0, "decay_rate": -0.8, "beta1": None, "weight_decay": 0.0,
             "scale_parameter": True, "relative_step": True, "warmup_init": False, "params": [0, 1, 2],
             "param_names": ["conv", "flat", "bias"]}
    case("adafactor_transformers", net, {"state": state, "param_groups": [group]}, want)


class Tagged(torch.Tensor):
    pass


def eight_bit():
    """Shaped like bitsandbytes' states: codes, a map of 256 values, a scale per block of 256, attributes on the tensors."""
    torch.manual_seed(10)
    net = nn.Module()
    net.big = nn.Parameter(torch.randn(17, 31))      # 527 elements: three blocks, the last one short
    net.small = nn.Parameter(torch.randn(9))
    codes = torch.randint(0, 256, (17, 31), dtype=torch.uint8)
    qmap = torch.linspace(0, 1, 256) ** 3
    absmax = torch.rand(3)
    codes.is_paged = False                           # -> _rebuild_from_type_v2
    small = torch.rand(9)
    state = {0: {"step": 4, "state1": codes.clone(), "state2": codes, "qmap1": qmap.clone(), "qmap2": qmap, "absmax1": absmax.clone(), "absmax2": absmax},
             1: {"step": 4, "state1": torch.randn(9), "state2": small}}
    blocks = torch.arange(17 * 31) // 256
    want = {"big": (qmap[codes.flatten().long()] * absmax[blocks]).reshape(17, 31).double(), "small": small.double()}
    group = {"lr": 1e-3, "betas": (0.9, 0.995), "eps": 1e-8, "weight_decay": 0.0, "params": [0, 1], "param_names": ["big", "small"]}
    case("eight_bit", net, {"state": state, "param_groups": [group]}, want)
    nested = {i: {"step": s["step"], "__bnb_optimizer_quant_state__": {k: v for k, v in s.items() if k != "step"}} for i, s in state.items()}
    case("eight_bit_fsdp", net, {"state": nested, "param_groups": [group]}, want)


def refused():
    torch.manual_seed(11)
    for name, make in [("adamax", lambda p: torch.optim.Adamax(p)), ("sgd", lambda p: torch.optim.SGD(p, lr=0.1)),
                       ("sgd_momentum", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))]:
        net = Net()
        opt = make(net.named_parameters())
        train(net, opt)
        case("refused_" + name, net, opt.state_dict(), None)
    net = Net()
    named = dict(net.named_parameters())
    opt = torch.optim.AdamW(net.named_parameters())
    train(net, opt)
    good = opt.state_dict()

    def changed(name, entry=lambda s: s, group=lambda g: g):
        state = {i: entry(dict(s)) for i, s in good["state"].items()}
        groups = [group(dict(g)) for g in good["param_groups"]]
        case("refused_" + name, net, {"state": state, "param_groups": groups}, None)

    changed("lion", lambda s: {"exp_avg": s["exp_avg"]})
    changed("galore", group=lambda g: {**g, "rank": 4, "update_proj_gap": 200, "scale": 0.25})
    changed("soap", lambda s: {**s, "GG": [s["exp_avg"]], "Q": [s["exp_avg"]]})
    changed("unknown_rms", lambda s: {"square_avg": s["exp_avg_sq"], "step": s["step"]})
    changed("no_step", lambda s: {k: v for k, v in s.items() if k != "step"})
    changed("no_betas", group=lambda g: {k: v for k, v in g.items() if k != "betas"})
    changed("step_zero", lambda s: {**s, "step": torch.tensor(0.0), "exp_avg": s["exp_avg"] * 0, "exp_avg_sq": s["exp_avg_sq"] * 0})
    changed("beta_one", group=lambda g: {**g, "betas": (0.9, 1.0)})
    changed("orphan", group=lambda g: {**g, "params": g["params"][:-1], "param_names": g["param_names"][:-1]})
    changed("listed_twice", group=lambda g: {**g, "params": [0] + g["params"][:-1]})
    changed("names_short", group=lambda g: {**g, "param_names": g["param_names"][:-1]})
    changed("names_collide", group=lambda g: {**g, "param_names": ["module." + g["param_names"][1 if n == 0 else n] if n == 0 else v for n, v in enumerate(g["param_names"])]})
    changed("names_swapped", group=lambda g: {**g, "param_names": g["param_names"][1:] + g["param_names"][:1]})
    changed("names_unknown", group=lambda g: {**g, "param_names": ["other." + n for n in g["param_names"]]})
    changed("integers", lambda s: {**s, "exp_avg_sq": s["exp_avg_sq"].long()})

    def poke(value, dtype=torch.float32):
        def entry(s):
            v = s["exp_avg_sq"].clone().to(dtype)
            if v.numel() == 18:
                v.view(-1)[13] = value
            return {**s, "exp_avg_sq": v}
        return entry
    changed("nan", poke(float("nan")))
    changed("infinite", poke(float("inf")))
    changed("negative", poke(-1e-3))
    changed("beyond_f32", poke(1e39, torch.float64))
    changed("large", poke(1e38))
    changed("misaligned", lambda s: {**s, "exp_avg": s["exp_avg"] + 1.0})
    changed("all_zero", lambda s: {**s, "exp_avg": s["exp_avg"] * 0, "exp_avg_sq": s["exp_avg_sq"] * 0})
    other = Net()
    other.head = nn.Linear(6, 4)
    opt = torch.optim.AdamW(other.parameters())
    for _ in range(2):
        opt.zero_grad(); other(torch.randn(3, 6)).sum().backward(); opt.step()
    case("refused_other_model", net, opt.state_dict(), None)


class Calls:
    """What a hostile file would run on loading."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


def hostile():
    torch.manual_seed(12)
    net = nn.Linear(3, 2)
    opt = torch.optim.AdamW(net.parameters())
    for _ in range(2):
        opt.zero_grad(); net(torch.randn(4, 3)).sum().backward(); opt.step()
    sd = opt.state_dict()
    d = out / "hostile"
    d.mkdir(parents=True, exist_ok=True)
    save_file({n: p.detach() for n, p in net.named_parameters()}, str(d / "model.safetensors"))
    torch.save(sd, d / "sound.pt")
    torch.save(sd, d / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(sd, d / "protocol4.pt", pickle_protocol=4)
    torch.save(sd, d / "stem_of_21_characters.pt")      # some versions of the zip crate refuse it, see Cargo.toml
    torch.save(opt, d / "whole_optimizer.pt")
    torch.save({**sd, "note": Calls(os.system, "echo hostile")}, d / "system_beside.pt")
    step = {**sd, "state": {i: {**s, "step": Calls(os.system, "echo hostile")} for i, s in sd["state"].items()}}
    torch.save(step, d / "system_as_step.pt")
    acc = {**sd, "state": {i: {**s, "exp_avg_sq": Calls(os.system, "echo hostile")} for i, s in sd["state"].items()}}
    torch.save(acc, d / "system_as_accumulator.pt")
    torch.save({**sd, "param_groups": Calls(os.system, "echo hostile")}, d / "system_as_groups.pt")
    torch.save({"a": sd, "b": sd | {"x": 1}}, d / "two_optimizers.pt")
    torch.save(net.state_dict(), d / "state_dict.pt")
    torch.save({"optimizer_state_dict": {"zero_stage": 2, "base_optimizer_state": {}}}, d / "zero_shard.pt")
    torch.save({"state": {0: sd["state"][0], "0": sd["state"][1]}, "param_groups": sd["param_groups"]}, d / "two_zeros.pt")

    entries = [(i.filename, zipfile.ZipFile(d / "sound.pt").read(i)) for i in zipfile.ZipFile(d / "sound.pt").infolist()]

    def archive(name, items, method=zipfile.ZIP_STORED):
        with zipfile.ZipFile(d / name, "w", method) as z:
            for n, data in items:
                z.writestr(zipfile.ZipInfo(n), data, compress_type=method)
    archive("deflated.pt", entries, zipfile.ZIP_DEFLATED)
    archive("big_endian.pt", [(n, b"big" if n.endswith("byteorder") else data) for n, data in entries])
    archive("no_pickle.pt", [(n, data) for n, data in entries if not n.endswith("data.pkl")])
    archive("two_pickles.pt", entries + [("x/data.pkl", b"\x80\x02}.")])
    import warnings
    warnings.simplefilter("ignore")
    archive("duplicate.pt", entries + [entries[-1]])

    sound = (d / "sound.pt").read_bytes()
    (d / "truncated.pt").write_bytes(sound[: len(sound) // 2])
    v = sd["state"][0]["exp_avg_sq"].numpy().tobytes()
    at = sound.index(v)
    (d / "bit_flip.pt").write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1:])
    # The central directory claims more than the file holds.
    data = next(n for n, x in entries if x == v)
    end = sound.rindex(data.encode()) - 46
    claimed = bytearray(sound)
    assert claimed[end:end + 4] == b"PK\x01\x02"
    struct.pack_into("<II", claimed, end + 20, 0x7000_0000, 0x7000_0000)
    (d / "overclaim.pt").write_bytes(claimed)
    (d / "empty.pt").write_bytes(b"")
    (d / "lfs.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (d / "bare.pt").write_bytes(pickle.dumps({"state": {}, "param_groups": []}, 2))


def several_groups():
    """Groups that the model's order of definition alone does not settle, and such that it does."""
    def stack(*sizes):
        return nn.Sequential(*[nn.Linear(i, o) for i, o in zip(sizes, sizes[1:])])

    for seed, (name, net, layers) in enumerate([("layers_from_the_top", stack(4, 4, 4, 4), [[2], [1], [0]]),
                                                ("head_first", stack(4, 4, 4, 4), [[2], [0, 1]]),
                                                ("middle_first", stack(4, 4, 4, 3), [[1], [0, 2]]),
                                                ("body_and_head", stack(4, 4, 4, 3), [[0, 1], [2]]),
                                                ("layer_by_layer", stack(2, 5, 5, 5)[:2], [[0], [1]])]):
        torch.manual_seed(20 + seed)
        groups = [{"params": [p for i in part for p in net[i].parameters()], "lr": 1e-3 / (1 + n)} for n, part in enumerate(layers)]
        opt = torch.optim.AdamW(groups)
        for _ in range(3):
            opt.zero_grad(); net(torch.randn(5, net[0].in_features)).square().mean().backward(); opt.step()
        case(name, net, opt.state_dict(), accumulators(net, opt), names=names_of(net, opt), bin=True)


def adagrad():
    """Adagrad makes a state for every parameter at once; its sum may start above 0."""
    torch.manual_seed(30)
    net = Net()
    net.unused = nn.Linear(2, 2)
    opt = torch.optim.Adagrad(net.named_parameters())
    train(net, opt)
    want = {n: v for n, v in accumulators(net, opt, "sum").items() if not n.startswith("unused")}
    case("adagrad_unused", net, opt.state_dict(), want)
    for name, dtype in [("adagrad_initial", torch.float32), ("adagrad_initial_bf16", torch.bfloat16)]:
        net = Net().to(dtype)
        opt = torch.optim.Adagrad(net.named_parameters(), initial_accumulator_value=0.1)
        for _ in range(5):
            opt.zero_grad(); net(torch.randn(8, 6, dtype=dtype)).square().mean().backward(); opt.step()
        start = torch.tensor(0.1, dtype=dtype).double()
        case(name, net, opt.state_dict(), {n: v - start for n, v in accumulators(net, opt, "sum").items()})


def steps_of_integers():
    torch.manual_seed(31)
    net = Net()
    opt = torch.optim.AdamW(net.named_parameters())
    train(net, opt)
    for dtype in ["int16", "uint8", "int8"]:
        state = opt.state_dict()
        for s in state["state"].values():
            s["step"] = s["step"].to(getattr(torch, dtype))
        case("step_" + dtype, net, state, accumulators(net, opt))


good()
factored()
eight_bit()
refused()
hostile()
several_groups()
adagrad()
steps_of_integers()
