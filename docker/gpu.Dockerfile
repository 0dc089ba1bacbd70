# docker build -f docker/gpu.Dockerfile -t ntkpipe-gpu . && docker run --gpus all --shm-size=2g -v "$PWD:/data" ntkpipe-gpu run data.path=/data/my.npz run_dir=/data/run
# The CUDA libraries come with JAX; the host needs NVIDIA's driver and container toolkit.
FROM python:3.12-slim
WORKDIR /opt/ntkpipe
COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt ".[fast,cloud]" "jax[cuda12]"
RUN useradd --create-home ntkpipe
USER ntkpipe
WORKDIR /home/ntkpipe
ENTRYPOINT ["ntkpipe"]
