"""The frame of every page: its style, its script, and the policy that allows no other script and no request.

What models wrote is foreign text: it is cleaned, shortened and escaped. Should anything ever slip through, the policy
in the page runs only the script whose hash it names, and the files of samples that this one loads.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup, escape

from pipeline.report import text
from pipeline.report.lineage import kind_class
from pipeline.report.resources import Use

SCRIPTS = ("page.js", "browser.js")
LIVE = "live.js"
STYLES = ("page.css", "browser.css")
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{hash}' 'strict-dynamic'; "
    "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types zero2r1"
)


def render(template: str, live: bool = False, **values: Any) -> str:
    """A page as HTML.

    Args:
        template: name of its template.
        live: whether it is served, and asks its server what is new.
        values: what the template shows.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        duration=text.duration,
        moment=text.moment,
        size=text.size,
        number=text.number,
        clean=text.clean,
        percent=text.percent,
        sampling=text.sampling,
        kind_class=kind_class,
        code_names=code_names,
        amount=text.amount,
        parts_of_a_step=_parts_of_a_step,
    )
    environment.globals.update(took_columns=_took_columns, took_cells=_took_cells)
    script = "".join(_read(name) for name in (*SCRIPTS, *((LIVE,) if live else ())))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = POLICY.format(hash=digest) + ("; connect-src 'self'" if live else "")
    style = "".join(_read(name) for name in STYLES)
    return environment.get_template(template).render(
        policy=policy, style=Markup(style), script=Markup(script), **values
    )


def _read(name: str) -> str:
    return resources.files("pipeline.report").joinpath(name).read_text(encoding="utf-8")


def code_names(sentence: str) -> Markup:
    """Text in which names stand between backticks, as HTML."""
    parts = sentence.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(parts))


def _parts_of_a_step(parts: dict[str, float]) -> str:
    return ", ".join(f"{text.clean(name)} {text.percent(share, 0)} %" for name, share in parts.items())


def _took_cells(use: Use) -> dict[str, str]:
    """What a stage took, by the heading of the column; empty where it was not measured."""
    return {
        "Time": "" if use.seconds is None else text.duration(use.seconds),
        "In steps, %": "" if use.work is None else text.percent(use.work, 0),
        "GPU-hours": "" if use.gpu_hours is None else f"{use.gpu_hours:.3g}",
        "Memory": "" if use.host is None else text.size(use.host),
        "GPU memory": "" if use.gpu is None else text.size(use.gpu),
        "Tokens/s": "" if use.tokens is None else f"{use.tokens:,.0f}",
        "Samples/s": "" if use.samples is None else f"{use.samples:.3g}",
        "MFU, %": "" if use.mfu is None else text.percent(use.mfu),
    }


def _took_columns(runs: Sequence[tuple[str, Sequence[Use]]]) -> list[str]:
    """The headings of columns in which at least one stage has a value."""
    cells = [_took_cells(use) for _, uses in runs for use in uses]
    return [name for name in (cells[0] if cells else ()) if any(row[name] for row in cells)]
