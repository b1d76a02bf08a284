"""Said: what is known of a captured update's reconstruction without the private images."""

from __future__ import annotations

from gifd.campaign.record import Record


def said(record: Record) -> list[tuple[str, str]]:
    """Names and sentences; none for a record with nothing but scores."""
    own = record.evidence
    if own is None:
        return []
    nulls = [null for null in own.null_distances if null is not None]
    told = [("changed to fit the model", note) for note in own.notes]
    if len(own.considered) > 1:
        misfits = ", ".join(f"{n}: {number(v, 2)}" for n, v in own.considered.items())
        told.append(("assumptions compared, misfit", misfits))
    told.append(
        (
            "fit",
            f"The update looks like those of {own.simulated} simulated clients (misfit "
            f"{number(own.misfit, 2)})."
            if own.explained
            else f"Not explained by what is assumed about the client (misfit "
            f"{number(own.misfit, 1)}): {own.reason}. What follows may be wrong, and a bad "
            "reconstruction is no sign of safety.",
        )
    )
    if nulls and record.distance is not None:
        better = record.distance < min(nulls)
        told.append(
            (
                "matching distance",
                f"{record.distance:.3g}; of {len(nulls)} unrelated images {min(nulls):.3g} to "
                f"{max(nulls):.3g}."
                + ("" if better else " The answer explains no more than unrelated images do."),
            )
        )
    if own.agreement is not None:
        told.append(("restarts agree to", f"{own.agreement:.1f} dB"))
    return told


def number(value: float | None, digits: int = 3) -> str:
    """A number as text, a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"
