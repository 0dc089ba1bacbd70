# docker build -f docker/cpu.Dockerfile -t ntkpipe .
# docker run --rm --shm-size=2g --user "$(id -u):$(id -g)" -v "$PWD:/data" ntkpipe run data.path=my.npz
# The working folder is the mounted one: files are read and results are written there, as the user of --user.
FROM python:3.12-slim
WORKDIR /opt/ntkpipe
COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt ".[report,tables,images,fast,cloud]"
# A user of --user has no entry in /etc/passwd: Ray and JAX take the name and the home from here.
ENV HOME=/tmp USER=ntkpipe LOGNAME=ntkpipe
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["ntkpipe"]
