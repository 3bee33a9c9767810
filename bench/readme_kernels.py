"""The tables of docs/kernels.md; ``readme.py`` puts them in their places."""

from __future__ import annotations

from readme_forecast import _read, _source, _table

SEEN = "Wan 14B 480p, hidden states"


def kernel_traffic() -> str:
    """Bytes that each op moves, and on an H100 beside a copy of those its formula needs."""
    data, gpu = _read("cpu/traffic"), _read("h100/kernels")
    seen = {r["op"]: r for r in gpu["rows"] if (r["shape"], r["dtype"]) == (SEEN, "bfloat16")}
    rows = []
    for row in data["rows"]:
        cells = [f"`{row['op']}`", f"{row['formula']}", f"{row['kernel']}", f"{row['eager bfloat16']:.0f}"]
        if measured := seen.get(row["op"]):
            cuda, eager = measured["cuda"]["device"], measured["eager"]["device"]
            cells += [f"{100 * measured['copy_device'] / cuda:.0f} %", f"{eager / cuda:.1f}"]
        rows.append(cells)
    header = ["op", "the formula needs", "our kernel moves", "eager torch moves", "H100: of a copy", "times eager"]
    note = (
        f"Tensors of x's size that are read or written. The last two columns are of CUDA kernels in bfloat16 at {SEEN} "
        "([1, 32760, 5120]), the GPU's time with a cold cache, beside a copy of the bytes that the formula needs in "
        f"the same run ({gpu['gpu']}; `bench/results/h100/kernels.json`, commit {gpu['commit'][:10]}). "
    )
    return _table(header, rows) + "\n\n" + note + _source("cpu/traffic", data)


def compiled_kernels() -> str:
    """Registers, and the width of loads and stores, of every op and GPU generation."""
    data = _read("nvcc/kernels")
    wide: dict[str, dict[str, list[dict]]] = {}
    for row in data["rows"]:
        op = row["source"].split("/")[-1].removesuffix(".cu")
        wide.setdefault(op, {}).setdefault(row["architecture"], []).append(row)
    rows = []
    for op, by_architecture in sorted(wide.items()):
        cells = []
        for architecture in ("sm_80", "sm_90", "sm_100"):
            found = by_architecture[architecture]
            packs = [r for r in found if r["width"] > 1]
            loads, stores = (sorted({r[key].get("128", 0) for r in packs}) for key in ("loads", "stores"))
            span = ["none" if not n else f"{n[0]}-{n[-1]}" if n[0] != n[-1] else str(n[0]) for n in (loads, stores)]
            cells.append(f"{max(r['registers'] for r in found)}; {span[0]}; {span[1]}")
        rows.append([f"`{op}`", str(len(by_architecture["sm_90"])), *cells])
    note = (
        "Registers of a thread at most; 16-byte loads; 16-byte stores, in the machine code of the kernels that work on "
        "packs (reductions that leave only sums store none). No kernel spills or has local memory. "
        f"`bench/results/nvcc/kernels.json`, made by `{data['command']}` ({data['compiler']})."
    )
    return _table(["op", "kernels", "sm_80", "sm_90", "sm_100"], rows) + "\n\n" + note
