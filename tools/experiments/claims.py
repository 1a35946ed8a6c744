"""The paper's claims about its methods, as differences that are positive if the claim holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

from experiments.table import Results

Figures = Mapping[str, Mapping[str, float]]  # method -> metric -> percent
GAIN = 1.4  # factor by which distillation must raise the AP of novel classes


@dataclass(frozen=True)
class Claim:
    """A claim about the methods.

    Attributes:
        text: the claim in words.
        margin: computes the margin from one seed's figures; positive if the claim holds.
        methods: methods whose figures it uses.
    """

    text: str
    margin: Callable[[Figures], float]
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """The evidence for a claim over all seeds.

    Attributes:
        claim: the claim.
        margins: one per seed.
    """

    claim: Claim
    margins: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean margin."""
        return fmean(self.margins)

    @property
    def deviation(self) -> float:
        """Sample standard deviation of the margins; 0 for one seed."""
        return stdev(self.margins) if len(self.margins) > 1 else 0.0

    @property
    def verdict(self) -> str:
        """Return whether the claim holds by more than the deviation over the seeds."""
        if abs(self.mean) <= self.deviation:
            return "undecided"
        return "holds" if self.mean > 0 else "does not hold"


def _ahead(
    column: str, first: str, second: str
) -> tuple[Callable[[Figures], float], tuple[str, ...]]:
    return lambda f: f[first][column] - f[second][column], (first, second)


def _gain(method: str) -> tuple[Callable[[Figures], float], tuple[str, ...]]:
    return lambda f: f[method]["APr"] / f["text"]["APr"] - GAIN, (method, "text")


_OTHERS = ("clip", "text", "image", "vild")  # compared with the ensemble
_WEIGHTS = ("vild_0", "vild_0.1", "vild", "vild_1")

CLAIMS = (
    Claim(f"APr of ViLD / APr of ViLD-text minus {GAIN}", *_gain("vild")),
    Claim(f"APr of ViLD-ensemble / APr of ViLD-text minus {GAIN}", *_gain("ensemble")),
    Claim("AP of ViLD minus AP of ViLD-text", *_ahead("AP", "vild", "text")),
    Claim("AP of ViLD-ensemble minus AP of ViLD-text", *_ahead("AP", "ensemble", "text")),
    Claim(
        "AP of ViLD-ensemble minus best AP of ViLD-text, ViLD-image, ViLD and CLIP on crops",
        lambda f: f["ensemble"]["AP"] - max(f[name]["AP"] for name in _OTHERS),
        ("ensemble", *_OTHERS),
    ),
    Claim(
        "AP of ViLD-ensemble minus AP of ViLD-text + CLIP", *_ahead("AP", "ensemble", "text_clip")
    ),
    Claim("AP of base classes: ViLD-text minus ViLD", *_ahead("AP-base", "text", "vild")),
    Claim(
        "AP of base classes: ViLD-text minus ViLD-ensemble", *_ahead("AP-base", "text", "ensemble")
    ),
    Claim("APr of CLIP on crops minus APr of ViLD-text", *_ahead("APr", "clip", "text")),
    Claim("AP of ViLD-text minus AP of CLIP on crops", *_ahead("AP", "text", "clip")),
    *(
        Claim(f"APr: w = {more} minus w = {less}", *_ahead("APr", second, first))
        for (less, first), (more, second) in zip(
            zip((0, 0.1, 0.5), _WEIGHTS[:-1], strict=True),
            zip((0.1, 0.5, 1), _WEIGHTS[1:], strict=True),
            strict=True,
        )
    ),
    Claim("AP of base classes: w = 0 minus w = 1", *_ahead("AP-base", "vild_0", "vild_1")),
)


def judge(results: Results) -> list[Finding]:
    """Evaluate every claim for whose methods there are results."""
    seeds = list(next(iter(results.values())))
    findings = []
    for claim in CLAIMS:
        if all(method in results for method in claim.methods):
            by_seed = [{m: results[m][seed] for m in claim.methods} for seed in seeds]
            findings.append(Finding(claim, tuple(map(claim.margin, by_seed))))
    return findings


def claims_to_markdown(findings: list[Finding]) -> str:
    """Format the claims as a Markdown table."""
    lines = ["| margin of the claim | mean ± deviation | |", "| --- | ---: | --- |"]
    for finding in findings:
        digits = 2 if "/" in finding.claim.text else 1
        shown = f"{finding.mean:+.{digits}f} ± {finding.deviation:.{digits}f}"
        lines.append(f"| {finding.claim.text} | {shown} | {finding.verdict} |")
    return "\n".join(lines) + "\n"
