"""A gallery of photographs behind a real server: what is shown of it, and what is not any more."""

import io
import time
from pathlib import Path

import httpx
from PIL import Image

from index.removal import delete
from ingest.job import Job
from ingest.records import image_identity
from serve.service.settings import ServiceSettings
from tests.serve.embedded_server import embedded
from tests.serve.http.test_http_problems import checked
from tests.serve.http.test_thumbnails import SECRET_PLACE, job, picture, with_gps

__all__ = ["job"]
WAIT_S = 60.0


def test_pictures_follow_the_gallery(job: Job, tmp_path: Path) -> None:
    ids = [image_identity("photos", f"{number}.jpg")[0] for number in range(8)]
    with (
        embedded(job.gallery, tmp_path, service=ServiceSettings(poll_s=0.1)) as url,
        httpx.Client(base_url=url, timeout=WAIT_S) as client,
    ):
        path = f"/v1/images/{ids[0]}/thumbnail"
        shown = client.get(path, params={"size": 100})
        assert shown.status_code == 200 and SECRET_PLACE not in shown.content
        assert Image.open(io.BytesIO(shown.content)).size == (85, 128)
        known = {"If-None-Match": shown.headers["etag"]}
        assert client.get(path, params={"size": 128}, headers=known).status_code == 304

        (tmp_path / "photos" / "1.jpg").write_bytes(with_gps(picture(300, 200, 99)))
        (tmp_path / "photos" / "2.jpg").unlink()
        for number, reason in ((1, "changed"), (2, "missing")):
            refused = client.get(f"/v1/images/{ids[number]}/thumbnail")
            assert checked(refused, "not-found").extra == {"reason": reason}
            assert client.get(f"/v1/images/{ids[number]}").status_code == 200, "its row is still there"

        delete(job, [ids[0]])
        deadline = time.monotonic() + WAIT_S
        while client.get("/v1/generation").json()["number"] == 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        for gone in (path, f"{path}?size=128", f"/v1/images/{ids[0]}", f"/v1/images/{ids[0]}/similar"):
            checked(client.get(gone, headers=known), "not-found")
        assert client.get(f"/v1/images/{ids[3]}/thumbnail").status_code == 200
        metrics = client.get("/metrics").text
    assert "reseen_generation 2.0" in metrics and "reseen_flips_total" in metrics
    for stage in ("scan", "fan_out", "thumbnail", "request"):
        assert f'reseen_stage_seconds_count{{stage="{stage}"}}' in metrics
