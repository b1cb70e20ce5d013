"""Clusters and ranks as users see them: what is drawn is what the files say, or nothing."""

import dataclasses
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import adjusted_rand_score

from atlas_flwr.results.figures import drawn
from atlas_flwr.results.found import by_group, cluster_map, graph, similarity
from atlas_flwr.results.insights import insights
from atlas_flwr.results.plots import paint, write_plots
from atlas_flwr.results.plots_maps import draw_heat_map
from atlas_flwr.results.ranked import importance_map, memory_scatter, rank_map, short_names
from atlas_flwr.results.report import write_report
from atlas_flwr.results.shapes import FAINT, Group, Scale
from atlas_flwr.results.svg.maps import heat_key

SVG = "{http://www.w3.org/2000/svg}"
KINDS = ("query", "key", "attention.output.dense", "output.dense")
ALL = ["similarity", "graph", "clusters", "ranks", "importance", "predicted-memory"]


def titles(svg):
    return [title.text for title in ElementTree.fromstring(svg).iter(f"{SVG}title")]


def told(clusters, rng):
    """Return a clusters.json of two label spaces: the last cluster is the second space."""
    last = max(clusters.values())
    spaces = [[p for p, c in clusters.items() if (c == last) == second] for second in (False, True)]
    places = []
    for at, limit in zip(spaces, (3.0, 2.0), strict=True):
        z = rng.normal(size=(len(at), len(at))) * 4
        z = (z + z.T).tolist()
        if len(at) > 2:
            z[0][-1] = z[-1][0] = None
        places.append({"partitions": at, "z": z, "threshold": limit})
    edges = [[float(a == b) for b in clusters.values()] for a in clusters.values()]
    named = {str(p): c for p, c in clusters.items()}
    return {"k": 2, "why": "x", "clusters": named, "spaces": places, "graph": edges}


def ranks_of(clients, layers=2):
    modules = [f"base.layer.{i}.{kind}" for i in range(layers) for kind in KINDS]
    return {
        "how": "importance",
        "clients": {
            str(p): {
                "device": ("phone", "laptop")[p % 2],
                "cluster": 0,
                "by": "memory",
                "ranks": {module: 1 + (p + i) % 9 for i, module in enumerate(modules)},
                "predicted_memory_mb": None if p == 3 else 400.0 + p,
            }
            for p in range(clients)
        },
        "importance": {"0": {module: i + 1.0 for i, module in enumerate(modules)}},
    }


def found_run(make_run, per_task=2, **options):
    """Return a run of two tasks with clusters and ranks; client 0 is in the wrong cluster."""
    count = 2 * per_task
    clusters = {p: p // per_task for p in range(count)}
    clusters[0] = 1 if count > 2 else 0

    def change(rows):
        return [dataclasses.replace(row, cluster=clusters[row.partition]) for row in rows]

    run = make_run(per_task=per_task, change=change, **options)
    facts = told(clusters, np.random.default_rng(count))
    return dataclasses.replace(run, clusters=facts, ranks=ranks_of(count))


def test_runs_without_files_have_no_such_pictures(make_run, tmp_path):
    run = make_run()
    assert insights(run) == []
    assert "What it found" not in write_report(run).read_text()
    bare = dataclasses.replace(run, rounds=[{"round": 1}], clusters={"k": 1, "why": "x"}, ranks={})
    assert insights(bare) == []


@pytest.mark.parametrize("per_task", [1, 2, 6, 24, 40])
def test_all_sizes_are_drawn(make_run, tmp_path, per_task):
    run = found_run(make_run, per_task, rounds=2)
    assert [picture.name for picture in insights(run)] == ALL
    page = write_report(run).read_text(encoding="utf-8")
    ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    assert "What it found" in page
    if per_task == 1:
        assert set(ALL) <= {path.stem for path in write_plots(run, tmp_path / "plots")}
    if per_task == 24:
        for index in (0, 2, 3):
            assert paint(insights(run)[index], tmp_path, run).stat().st_size > 10_000


def test_similarity_has_the_files_numbers_in_the_order_of_clusters(make_run):
    run = found_run(make_run, 3)
    figure = similarity(run)
    assert figure.rows == figure.columns == ["1", "2", "0", "3", "4", "5"]
    assert figure.row_groups == [Group("cluster 0", 2), Group("cluster 1", 4)]
    want = {}
    for space in run.clusters["spaces"]:
        for one, row in zip(space["partitions"], space["z"], strict=True):
            for other, value in zip(space["partitions"], row, strict=True):
                want[str(one), str(other)] = (value, space["threshold"])
    for i, one in enumerate(figure.rows):
        for j, other in enumerate(figure.rows):
            value, limit = want.get((one, other), (None, None))
            if i == j or value is None:
                assert figure.values[i][j] is figure.shaded[i][j] is None
            else:
                assert figure.values[i][j] == value
                # The colour says on which side of its own label space's threshold it lies.
                colour, _ = figure.scale.shade(figure.shaded[i][j])
                assert colour == ("s1" if value > limit else "s0")
    said = titles(drawn(figure).svg)
    there = [(i, j) for i in range(6) for j in range(6) if figure.values[i][j] is not None]
    assert said == [figure.label(i, j) for i, j in there]
    assert "threshold 2 to 3" in [item.name for item in drawn(figure).legend]


def test_the_png_has_the_pages_shades_and_numbers(make_run):
    figure = rank_map(found_run(make_run).ranks)
    axes = Figure(figsize=(9, 5)).add_subplot()
    draw_heat_map(figure, axes)
    written = [int(t.get_text()) for t in axes.texts if t.get_text().isdigit()]
    numbers = [value for row in figure.values for value in row]
    assert written[: len(numbers)] == numbers
    pixels = np.asarray(axes.images[0].get_array())
    assert pixels.shape[:2] == (4, 8)
    darkest = np.unravel_index(pixels.sum(axis=2).argmin(), (4, 8))
    assert figure.values[darkest[0]][darkest[1]] == max(numbers)


def test_other_similarities_are_high_where_clients_are_alike(run):
    same = [[1.0, 0.9, -0.5], [0.9, 1.0, None], [-0.5, None, 1.0]]
    facts = {"k": 1, "clusters": {"0": 0, "1": 0, "2": 1}, "similarity": same, "threshold": 0.5}
    figure = similarity(dataclasses.replace(run, clusters=facts, clients=run.clients[:0]))
    assert figure.what == "similarity"
    assert figure.values == [[None, 0.9, -0.5], [0.9, None, None], [-0.5, None, None]]
    assert figure.scale.shade(figure.shaded[0][1])[0] == "s0"
    assert figure.scale.shade(figure.shaded[0][2])[0] == "s1"


def test_without_a_threshold_there_is_one_colour_and_alike_is_darkest(run):
    same = [[1.0, 0.9, -0.5], [0.9, 1.0, 0.2], [-0.5, 0.2, 1.0]]
    facts = {"k": 1, "partitions": [0, 1, 2], "similarity": same}
    for kind, sign in (("similarity", 1), ("z", -1)):
        facts = {"k": 1, "partitions": [0, 1, 2], kind: [[sign * v for v in r] for r in same]}
        figure = similarity(dataclasses.replace(run, clusters=facts, clients=run.clients[:0]))
        shades = {figure.scale.shade(figure.shaded[i][j]) for i, j in ((0, 1), (0, 2), (1, 2))}
        assert {colour for colour, _ in shades} == {"s0"}
        assert figure.scale.shade(figure.shaded[0][1]) == ("s0", 1.0)
        assert figure.scale.shade(figure.shaded[0][2]) == ("s0", FAINT)
        assert [text for text, _ in figure.key] == [
            *(f"{-0.5 * sign:g}, apart", f"{0.9 * sign:g}, alike"),
        ]


def test_the_graph_counts_each_edge_once_and_leaves_out_what_does_not_fit(make_run):
    run = found_run(make_run, 3)
    assert graph(run).caption.startswith(f"{1 + 6} edges")
    run.clusters["graph"] = [[1.0]]
    assert graph(run) is None


def test_the_graph_says_what_clusters_take_of_a_step_if_they_were_given_it(make_run):
    run = found_run(make_run, 3)
    assert "η" not in graph(run).caption
    run.clusters["eta"] = {"0": 1.0, "1": 0.857}
    assert "η of cluster 0: 1.00; cluster 1: 0.86" in graph(run).caption


def test_the_cluster_map_has_every_client_once_and_scikit_learns_index(make_run):
    run = found_run(make_run, 3)
    figure = cluster_map(run)
    placed = {dot.name: (c, figure.kinds[dot.kind]) for c, col in enumerate(figure.dots)
              for dot in col}  # fmt: skip
    tasks = ["bbc"] * 3 + ["tweets"] * 3
    assert placed == {str(p): (c, tasks[p]) for p, c in enumerate([1, 0, 0, 1, 1, 1])}
    index = adjusted_rand_score(tasks, [1, 0, 0, 1, 1, 1])
    assert f"adjusted Rand index {index:.2f}" in figure.caption
    assert "never saw the tasks" in figure.caption
    # A server that was given the tasks has no fingerprints to show.
    oracle = cluster_map(dataclasses.replace(run, clusters={"k": 2, "why": "x"}))
    assert "never saw" not in oracle.caption
    places, width, height = figure.places()
    spots = [spot for _, at in places for spot in at]
    assert len(set(spots)) == 6
    assert all(0 <= x < width and 0 <= y < height for x, y in spots)


def test_ranks_are_the_files_by_device_and_gaps_stay_empty(make_run):
    facts = ranks_of(4)
    del facts["clients"]["1"]["ranks"]["base.layer.0.key"]
    figure = rank_map(facts)
    assert figure.rows == ["1", "3", "0", "2"]
    assert figure.row_groups == [Group("laptop", 2), Group("phone", 2)]
    assert figure.columns == ["query", "key", "attention.output.dense", "output.dense"] * 2
    assert figure.column_groups == [Group("layer 0", 4), Group("layer 1", 4)]
    for name, row in zip(figure.rows, figure.values, strict=True):
        kept = facts["clients"][name]["ranks"]
        assert [v for v in row if v is not None] == list(kept.values())
    assert figure.values[0][1] is None
    assert ("no adapter", None) in figure.key
    assert "memory (4)" in figure.caption
    svg = drawn(figure).svg
    assert svg.count('class="number') == 4 * 8 - 1
    assert svg.count('class="gap"') == 1


def test_many_modules_become_layers_and_many_clients_devices():
    facts = ranks_of(80, layers=13)
    figure = rank_map(facts)
    assert figure.columns == [f"layer {i}" for i in range(13)]
    assert figure.rows == ["laptop", "phone"]
    phones = [list(c["ranks"].values()) for c in facts["clients"].values() if
              c["device"] == "phone"]  # fmt: skip
    want = np.mean(phones, axis=0).reshape(13, 4).mean(axis=1)
    assert figure.values[1] == pytest.approx(want)
    assert importance_map(facts).columns == figure.columns


def test_importance_is_a_share_in_shades_of_its_logarithm():
    facts = ranks_of(2)
    own = facts["importance"]["0"]
    own |= dict(zip(own, (1e-6, 1e-3, 1.0), strict=False))
    figure = importance_map(facts)
    assert sum(figure.values[0]) == pytest.approx(1.0)
    ordered = sorted(figure.values[0])
    steps = [figure.scale.shade(value)[1] for value in ordered]
    assert np.corrcoef(np.log(ordered), steps)[0, 1] == pytest.approx(1.0)
    assert (steps[0], steps[-1]) == (FAINT, 1.0)
    assert figure.legend == "share, log scale"
    assert [float(text) for text, _ in figure.key] == pytest.approx(
        [value for _, value in figure.key], rel=0.05
    )
    assert drawn(figure).legend[0].name == "share, log scale:"
    # A module's sum says little about its ranks: they go by each of its directions.
    assert "not this sum" in figure.caption
    own |= dict.fromkeys(own, 0.0) | {"base.layer.0.key": 2.0}
    assert importance_map(facts).key == [("0 to 1", 1.0)]
    assert importance_map({"importance": {"0": {}}}) is importance_map({}) is None


def test_memory_is_drawn_where_it_was_predicted(make_run):
    run = found_run(make_run)
    figure = memory_scatter(run)
    train = run.clients[run.clients.phase == "train"].groupby("partition").peak_memory_mb.max()
    points = sorted(point for group in figure.groups for point in group.points)
    assert points == [(400.0 + p, float(train[p])) for p in range(3)]  # client 3 has none
    ratios = [true / said for said, true in points]
    assert f"median {np.median(ratios):.2f}, 3 clients" in figure.caption
    assert len(titles(drawn(figure).svg)) == 3
    assert "one process for all clients" in figure.caption
    assert figure.top >= max(v for point in points for v in point)
    for client in run.ranks["clients"].values():
        client["predicted_memory_mb"] = None
    assert memory_scatter(run) is None


def test_shades_grow_away_from_the_centre_and_never_vanish():
    scale = Scale(-4.0, 9.0, 0.0)
    assert scale.shade(0.0) == ("s0", FAINT)
    assert scale.shade(-4.0) == ("s0", 1.0)
    assert scale.shade(9.0) == ("s1", 1.0)
    assert scale.shade(1.0)[1] < scale.shade(4.0)[1]
    assert Scale(2.0, 2.0).shade(2.0) == ("s0", 1.0)


def test_names_of_modules_stay_apart():
    modules = ["h.0.attn.q", "h.0.mlp.q", "h.1.attn.q", "pooler"]
    layers, names = short_names(modules)
    assert list(zip(layers, names, strict=True)) == [
        *(("0", "attn.q"), ("0", "mlp.q"), ("1", "attn.q"), ("", "pooler")),
    ]


def test_groups_are_means_of_what_there_is():
    rows = [[1.0, None], [3.0, None], [5.0, 7.0]]
    assert by_group(rows, [Group("a", 2), Group("b", 1)]) == [[2.0, None], [5.0, 7.0]]
    figure = rank_map(ranks_of(1))
    assert [text for text, _ in heat_key(figure)] == [text for text, _ in figure.key]
