"""Video generation as a service: ``pip install 'rainfusion-trt[serve]'``, docs/serving.md.

Three parts, each of which knows only the one before: the *worker* (`worker`, `pipeline_worker`)
makes one video; *jobs* (`store`, `content`, `runner`, `service`) are kept, claimed and finished;
*doors* (`api` with `ray_app`) let requests in.
"""
