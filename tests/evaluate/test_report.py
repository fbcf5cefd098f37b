"""The report page: whole, offline, escaped, worst first; drawn by a real browser where one is installed."""

import base64
import html.parser
import io
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from retrieval_case import make_head, make_store

from pipeline.evaluate.evaluation import Options, evaluate
from pipeline.evaluate.index_loss import IndexedGallery
from pipeline.evaluate.metrics import query_ranks
from pipeline.evaluate.report import sample_queries, write_report
from pipeline.retrieve.autotune import Requirements, autotune
from pipeline.retrieve.index import IndexSpec, build
from pipeline.retrieve.scorer import Scorer

NASTY = "<script>document.title='broken'</script> & \"quotes\""


def still(video_id, path):
    """A picture whose colour tells the video; one video has none."""
    if video_id == "v0003":
        return None
    assert path == f"/videos/{video_id}.mp4"
    out = io.BytesIO()
    Image.new("RGB", (32, 20), (int(video_id[1:]) * 5, 80, 120)).save(out, format="PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    store, head = make_store(folder / "f", videos=50), make_head("dits")
    videos, texts = store.videos(), store.texts()
    texts = replace(texts, captions=[f"{caption} {NASTY}" for caption in texts.captions])
    vectors = head.pool_video(torch.from_numpy(videos.frame_embeds), torch.from_numpy(videos.frame_mask)).numpy()
    index = IndexedGallery(build(vectors, IndexSpec()), np.arange(50), 6400, {"spec": IndexSpec().to_dict()})
    options = Options(resamples=20, shortlist=10, normalisations=("dual-softmax",))
    evaluation = evaluate(head, videos, texts, options, index=index, protocol={"split": "test", "label": "toy & co"})
    samples = sample_queries(head, evaluation, videos, texts, count=12, top=4)
    rows = autotune(vectors, np.arange(50), Requirements(recall=0.5), texts.text_embeds).points
    generator = np.random.default_rng(0)
    gaps = {"L2 norm": {"before": generator.normal(9, 1, 500), "after": generator.normal(7, 1, 500)}}
    path = write_report(
        folder / "report.html", evaluation, title="Toy run", samples=samples, picture=still, trade_off=rows, gaps=gaps
    )
    return path, evaluation, samples, (head, videos, texts)


class Page(html.parser.HTMLParser):
    """Collects tags with their attributes, and whether they nest properly."""

    VOID = frozenset({"meta", "img", "br", "link", "path", "use", "rect"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open, f"</{tag}> closes nothing"
            assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(page):
    text = page[0].read_text()
    parsed = Page(text)
    assert parsed.open == []
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "xlink:href", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), f"<{tag} {name}={value}> is outside the page"
        assert tag not in ("script", "link", "iframe", "object")
    assert not re.search(r"url\((?!#)|@import", text)


def test_captions_are_escaped(page):
    text = page[0].read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;document.title=" in text
    assert "toy &amp; co" in text


def test_numbers_figures_and_pictures_are_there(page):
    path, evaluation, _, _ = page
    text = path.read_text()
    for direction in ("t2v", "v2t"):
        assert f"{evaluation.metrics[direction]['R@1']:.2f}" in text
    for figure in ("recall-curves", "shortlist", "trade-off", "gap-l2-norm"):
        assert f'<figure id="{figure}"><svg' in text
    for name in ("dual softmax (all test queries at once)", "clip4clip", "pessimistic", "keeps the exhaustive best"):
        assert name in text
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(images) > 20
    assert all(Image.open(io.BytesIO(base64.b64decode(image))).size == (32, 20) for image in images)
    assert "no picture" in text or "v0003" not in text


def test_samples_are_the_worst_first_and_say_the_truth(page):
    _, evaluation, samples, (head, videos, texts) = page
    ranks = query_ranks(evaluation.t2v_counts)
    assert [s.rank for s in samples[:6]] == sorted(ranks, reverse=True)[:6]
    assert len({s.caption_id for s in samples}) == len(samples) == 12
    sims = Scorer(head, videos).full(texts.text_embeds)
    for sample in samples:
        row = texts.caption_ids.index(sample.caption_id)
        best = [videos.video_ids[i] for i in np.argsort(-sims[row])[:4]]
        assert [hit.video_id for hit in sample.hits[:4]] == best
        right = [hit for hit in sample.hits if hit.right]
        assert [hit.video_id for hit in right] == [texts.video_ids[row]]
        assert (sample.rank <= 4) == (right[0].video_id in best)


def test_the_same_evaluation_gives_the_same_page(page, tmp_path):
    _, evaluation, samples, _ = page
    a = write_report(tmp_path / "a.html", evaluation, samples=samples, picture=still).read_bytes()
    assert a == write_report(tmp_path / "b.html", evaluation, samples=samples, picture=still).read_bytes()


def test_a_real_browser_draws_it_offline(page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium installed (Debian: apt-get install chromium)")
    base = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    base += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    dom = subprocess.run(
        [*base, "--dump-dom", page[0].as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    assert "<title>Toy run</title>" in dom, "a caption's script ran, or the page did not load"
    assert dom.count('<section class="query">') == 12
    shot = tmp_path / "page.png"
    command = [*base, f"--screenshot={shot}", "--window-size=1100,3200", page[0].as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    colours = Image.open(shot).convert("RGB").getcolors(maxcolors=1_000_000)
    assert colours is not None
    assert len(colours) > 100, "the page is blank"
    drawn = {colour for _, colour in colours}
    assert any((number * 5, 80, 120) in drawn for number in range(50)), "no thumbnail was drawn"
