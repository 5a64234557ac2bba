"""A corpus, a call and a request: the same entities."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
from serve_cases import Served

from raytag import Client
from raytag.bulk.results import read_results
from raytag.bulk.settings import TagSettings
from raytag.bulk.tag import tag
from raytag.model.adapter import load_adapter
from raytag.model.tagger import Tagger

NEWS = Path(__file__).resolve().parents[2] / "sample" / "news"


def texts() -> list[str]:
    """500, from half a word to many windows."""
    sentences = [
        json.loads(line)["text"]
        for name in ("train", "test")
        for line in (NEWS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    found = sentences[:440]
    found += [" ".join(sentences[i : i + 1 + i % 9]) for i in range(440, 490)]
    found += ["", " ", "a", "🙂", "Se", "é" * 40, "\r\n", "x" * 3000, sentences[0] * 9, "東京"]
    return found


def test_of_500_documents_bulk_call_and_endpoint_give_the_same(
    served: Served, tmp_path: Path
) -> None:
    documents = texts()
    assert len(documents) == 500
    corpus = tmp_path / "corpus.jsonl"
    rows = [json.dumps({"id": str(i), "text": text}) for i, text in enumerate(documents)]
    corpus.write_text("\n".join(rows) + "\n", encoding="utf-8")
    folder = served.registry.resolve("acme/news@1").uri
    output = str(tmp_path / "tags")
    manifest = tag(TagSettings(input=str(corpus), output=output, model=folder, actors="1"))
    by_id = {int(row["id"]): row["entities"] for row in read_results(output, manifest)}
    bulk = [[(e["start"], e["end"], e["label"]) for e in by_id[i]] for i in range(500)]

    tagger = Tagger.of(load_adapter(Path(folder)))
    single = [[(e.start, e.end, e.label) for e in tagger.tag([text])[0]] for text in documents]

    with Client(served.url, served.keys["acme"], domain="news", timeout=60) as client:
        asked = client.extract(documents)
    online = [[(e.start, e.end, e.label) for e in entities] for entities in asked]

    assert sum(map(len, single)) > 500
    assert bulk == single
    assert online == single


def test_requests_of_many_tenants_at_a_time_get_what_each_alone_gets(served: Served) -> None:
    ways = [("acme", "/v1/acme/news"), ("acme", "/v1/acme/other"), ("globex", "/v1/globex/news")]
    documents = texts()[:60]

    def ask(client: httpx.AsyncClient, i: int) -> Any:
        key, path = ways[i % 3]
        return client.post(
            f"{path}/entities",
            json={"texts": [documents[i]]},
            headers={"Authorization": f"Bearer {served.keys[key]}"},
        )

    async def at_once(width: int) -> list[Any]:
        async with httpx.AsyncClient(base_url=served.url, timeout=60) as client:
            gate = asyncio.Semaphore(width)

            async def one(i: int) -> Any:
                async with gate:
                    answer = await ask(client, i)
                assert answer.status_code == 200, answer.text
                (document,) = answer.json()["documents"]
                return [(e["start"], e["end"], e["label"]) for e in document["entities"]]

            return await asyncio.gather(*(one(i) for i in range(len(documents))))

    alone = asyncio.run(at_once(1))
    assert asyncio.run(at_once(30)) == alone
    assert len({tuple(found) for found in alone}) > 20
