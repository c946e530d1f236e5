"""What a journal says, as MLflow takes it."""

from bdray.tracking.points import Point, points_of


def test_finite_values_are_points() -> None:
    entries = [
        {"step": 1, "time_ms": 10, "metrics": {"train/loss": 0.5, "train/accuracy": 1}},
        {"step": 2, "time_ms": 20, "metrics": {"train/loss": None, "train/penalty": float("inf")}},
    ]
    assert points_of(entries) == (Point("train/loss", 0.5, 10, 1), Point("train/accuracy", 1.0, 10, 1))
    assert points_of([]) == ()
