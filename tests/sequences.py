"""Runs over sequences of tasks as files, with the figures of an 8-layer MLP on digits; nothing is trained."""

import json

import numpy as np

from tunnel_lightning.runs import LayerInfo, ProfileTable, Row, write_layers, write_manifest

# At the end, averaged over the tasks before the last one: what the two strategies left of each layer.
NAIVE = {
    "drift": [0.074, 0.250, 0.378, 0.444, 0.463, 0.418, 0.507, 0.470],
    "repr": [0.002, 0.000, 0.002, 0.004, 0.006, 0.010, 0.017, 0.014],
    "all": [0.960, 0.944, 0.936, 0.903, 0.882, 0.858, 0.828, 0.787],
    "cka": [0.98, 0.91, 0.82, 0.76, 0.69, 0.66, 0.64, 0.63],
    "rank": [11.6, 6.8, 3.9, 2.5, 1.9, 1.6, 1.4, 1.3],
    "kept": 0.0,
}
REPLAY = {
    "drift": [0.010, 0.077, 0.127, 0.136, 0.139, 0.165, 0.157, 0.182],
    "repr": [-0.001, -0.001, -0.003, -0.002, 0.000, 0.000, 0.000, -0.002],
    "all": [0.966, 0.967, 0.964, 0.961, 0.964, 0.966, 0.965, 0.963],
    "cka": [0.99, 0.98, 0.98, 0.97, 0.97, 0.97, 0.97, 0.97],
    "rank": [14.0, 10.0, 8.0, 7.0, 6.5, 6.2, 6.1, 6.0],
    "kept": 0.93,
}
STRATEGIES = {"Naive": NAIVE, "Replay": REPLAY}

# Two tasks of five classes, a head each; cut behind layer k.
SWAPS = {
    "task 1": {
        "E1T1": [0.995] * 8,
        "E2T1": [0.958, 0.901, 0.859, 0.837, 0.820, 0.810, 0.803, 0.784],
        "E1T2": [0.874, 0.930, 0.964, 0.988, 0.988, 0.992, 0.995, 0.995],
        "E2T2": [0.784] * 8,
    },
    "task 2": {
        "E2T2": [0.983] * 8,
        "E2T1": [0.678, 0.840, 0.945, 0.970, 0.984, 0.984, 0.984, 0.983],
        "E1T2": [0.923, 0.750, 0.609, 0.558, 0.539, 0.510, 0.499, 0.490],
        "E1T1": [0.480] * 8,
    },
}
NETWORK = 9
IMAGES = 360


def sequence_rows(strategy="Naive", tasks=5, run_id=None, shift=0.0, after=None, layers=8):
    """Rows of a run of so many tasks, ``after``: of the first so many; ``shift`` makes every layer drift more."""
    figures = STRATEGIES[strategy]
    run_id = run_id or f"{strategy.lower()}/version_0"
    names = [f"layers.{i}.linear" for i in range(layers)]
    rows = []

    def add(experience, dataset, index, measure, variant, value, n=IMAGES, **more):
        layer = "network" if index == NETWORK else names[index - 1]
        at = (40 * (experience + 1), 3 * (experience + 1), experience)
        rows.append(
            Row(
                run_id, *at, "test", dataset, layer, index, measure, variant, float(value), n=n, dim=128
            )._replace(**more)
        )

    grown = np.array([1 - np.exp(-n) for n in range(tasks + 1)])  # of what is lost, so many tasks later
    share = grown / np.mean(grown[1:tasks]) if tasks > 1 else grown
    for k in range(-1, tasks if after is None else after):
        for j in range(tasks):
            task, seen = f"task {j + 1}", j <= k
            if k < 0:
                accuracy, within = 0.1, 0.5
            elif seen:
                accuracy, within = (0.99, 0.99) if j == k else (figures["kept"], 0.99 - 0.05 * share[k - j])
            else:
                accuracy, within = 0.0, 0.5
            add(k, task, NETWORK, "accuracy", "network", accuracy)
            add(k, task, NETWORK, "accuracy", "within_task", within)
            for i in range(layers):
                gone = share[k - j] if seen else 0.0
                learnt = 0.98 + 0.001 * i
                fresh = (
                    0.94 - 0.01 * i + (0.004 * (k + 1) * (2 - i) if k >= 0 else 0)
                )  # deep layers transfer less
                refit = learnt - figures["repr"][i] * gone if seen else fresh
                add(k, task, i + 1, "probe_accuracy", "refit_task", refit)
                rank = figures["rank"][i] if k >= 0 else 20 - i
                add(k, task, i + 1, "effective_rank", "cov", rank)
                add(k, task, i + 1, "rank_cov", "rtol=1e-3", round(3 * rank))
                if seen:
                    moved = (figures["drift"][i] + shift) * gone
                    add(k, task, i + 1, "probe_accuracy", "fixed", learnt - moved)
                    add(k, task, i + 1, "probe_accuracy", "online", learnt - 0.02 - 1.1 * moved)
                    add(k, task, i + 1, "cka", "learnt", 1 - (1 - figures["cka"][i]) * gone)
                    add(k, task, i + 1, "subspace_overlap", "k=10", 1 - 1.2 * (1 - figures["cka"][i]) * gone)
                    add(k, task, i + 1, "map_residual", "linear", 0.8 * (1 - figures["cka"][i]) * gone)
        for i in range(layers):
            whole = 0.97 - 0.002 * i - (0.97 - 0.002 * i - figures["all"][i]) * (k + 1) / tasks - shift / 4
            add(k, "all", i + 1, "probe_accuracy", "refit_all", whole, n=5 * IMAGES)
    return rows


def swap_rows(rows, tuned=True):
    """Rows of the swap, rewind and freeze sweeps of a run of two tasks, behind those it has."""
    last = max(rows, key=lambda row: row.step)._replace(split="test", n=IMAGES)
    found = []
    for task, variants in SWAPS.items():
        for variant, values in variants.items():
            found += [
                last._replace(
                    dataset=task, layer=f"layers.{k - 1}.linear", index=k, measure="swap_accuracy", variant=variant,
                    value=value,
                )
                for k, value in enumerate(values, 1)
            ]  # fmt: skip
    of = last._replace(dataset="task 1")
    for k in range(1, 9):
        at = of._replace(layer=f"layers.{k - 1}.linear", index=k)
        if tuned:
            for variant, value in (("E2+T1 tuned", 0.99), ("E2 tuned", 0.97 + 0.002 * k)):
                found.append(at._replace(measure="swap_accuracy", variant=variant, value=value))
        for i in range(1, k + 1):
            found.append(at._replace(measure="rewind_accuracy", variant=f"{i}..k", value=rewound(i, k)))
        for task, value in (("task 1", 0.784 + 0.02 * k), ("task 2", 0.983 - 0.03 * (k > 4) * (k - 4))):
            found.append(at._replace(dataset=task, measure="freeze_accuracy", variant="1..k", value=value))
    return found


def rewound(first, last):
    """Accuracy on the first task with a block put back: layers 3 and 4 hold most, layer 1 nothing of what it lost."""
    shares = [0.0, 0.1, 0.3, 0.55, 0.02, 0.02, 0.01, 0.0]
    return 0.784 + (0.995 - 0.784) * sum(shares[first - 1 : last])


def exit_rows(rows, tasks):
    """Rows of auxiliary classifiers at every layer, and of leaving early at several confidences."""
    last = max(rows, key=lambda row: row.step)._replace(split="test", n=IMAGES)
    found = []
    for j in range(tasks):
        of = last._replace(dataset=f"task {j + 1}")
        for k in range(1, 9):
            at = of._replace(layer=f"layers.{k - 1}.linear", index=k)
            value = 0.99 - 0.01 * (8 - k) if j == tasks - 1 else 0.45 - 0.04 * k
            found.append(at._replace(measure="exit_accuracy", variant="exit", value=value))
            found.append(at._replace(measure="exit_flops_share", variant="exit", value=k / 8))
        end = of._replace(layer="network", index=NETWORK)
        for threshold in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99):
            variant, early = f"threshold={threshold}", 0.3 - 0.2 * threshold + 0.6 * (j == tasks - 1)
            found.append(end._replace(measure="early_exit_accuracy", variant=variant, value=early))
            found.append(end._replace(measure="early_exit_flops", variant=variant, value=threshold**2))
        found.append(end._replace(measure="early_exit_accuracy", variant="most confident", value=early + 0.1))
        found.append(end._replace(measure="early_exit_flops", variant="most confident", value=1.0))
        found.append(end._replace(measure="overthinking", variant="any", value=0.31))
    return found


def about(tasks, kind="class_incremental", strategy="Naive", multi_head=False, seed=0):
    """The manifest's section on the sequence."""
    size = 10 // tasks if tasks <= 5 else 2
    return {
        "tasks": [
            {"name": f"task {j + 1}", "classes": [str(size * j + c) for c in range(size)], "label": j * multi_head}
            for j in range(tasks)
        ],
        "kind": kind, "data": "Digits", "strategy": {"class_path": strategy, "init_args": {"mem_size": 200}},
        "loop": "lightning", "head": "auto", "multi_head": multi_head, "epochs": 30, "num_classes": 10, "seed": seed,
        "resumable": None, "plugins": [], "batch_size": 32,
        "backbone": {"class_path": "tunnel_lightning.backbones.MLP", "init_args": {"depth": 8, "width": 128}},
    }  # fmt: skip


def write_sequence(folder, rows, tasks, layers=8, **section):
    """A run folder of these rows."""
    versions = {"python": "3.11.4", "torch": "2.15.0", "avalanche-lib": "0.6.0"}
    folder.mkdir(parents=True)
    write_manifest(folder, continual=about(tasks, **section), versions=versions, machine={"cores": 2})
    ProfileTable(folder / "profile.csv").append(rows)
    write_layers(
        folder,
        [
            LayerInfo(i, f"layers.{i - 1}.linear", "Linear", "128", 128, 16512, 32768, "layer")
            for i in range(1, layers + 1)
        ],
    )
    return folder


def naive(folder):
    """Five tasks of two classes, one head, with exits."""
    rows = sequence_rows("Naive")
    return write_sequence(folder, rows + exit_rows(rows, 5), 5)


def two_tasks(folder):
    """Two tasks of five classes, a head each, with the sweeps."""
    rows = sequence_rows("Naive", tasks=2, run_id="two/version_0")
    ends = {("task 1", -1): 0.2, ("task 1", 0): 0.995, ("task 1", 1): 0.784, ("task 2", 1): 0.983}
    rows = [
        r._replace(value=ends.get((r.dataset, r.experience), 0.2))
        if r.layer == "network" and r.variant == "network"
        else r
        for r in rows
        if r.layer != "network" or r.dataset == "task 1" or r.experience == 1  # no head, no accuracy
    ]
    rows = [r for r in rows if r.variant != "within_task"]
    return write_sequence(folder, rows + swap_rows(rows), 2, kind="task_incremental", multi_head=True)


def group(folder, depths=(4, 6, 8), seeds=3):
    """Networks of several depths, each with several seeds; the last one is not finished."""
    members = []
    for depth in depths:
        for seed in range(seeds):
            place = f"depth_{depth}/seed_{seed}"
            stops = 3 if (depth, seed) == (depths[-1], seeds - 1) else None
            rows = sequence_rows(
                "Naive", run_id=place, shift=0.01 * seed + 0.01 * depth, after=stops, layers=depth
            )
            rows = [
                r._replace(value=r.value - 0.01 * seed - 0.02 * depth)
                if r.variant == "within_task" and r.dataset < f"task {r.experience + 1}"
                else r
                for r in rows
            ]
            write_sequence(folder / place, rows, 5, layers=depth, seed=seed)
            members.append({"folder": place, "seed": seed, "depth": depth})
    (folder / "sweep.json").write_text(json.dumps({"members": members}))
    return folder
