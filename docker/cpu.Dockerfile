# docker build -f docker/cpu.Dockerfile -t ntkpipe . && docker run --shm-size=2g -v "$PWD:/data" ntkpipe run data.path=/data/my.npz run_dir=/data/run store.url=/data/store
FROM python:3.12-slim
WORKDIR /opt/ntkpipe
COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt ".[fast,cloud]"
RUN useradd --create-home ntkpipe
USER ntkpipe
WORKDIR /home/ntkpipe
ENTRYPOINT ["ntkpipe"]
