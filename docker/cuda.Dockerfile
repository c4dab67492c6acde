# From the top of the repository: docker build -f docker/cuda.Dockerfile -t correction-trl:cuda .
# PyTorch's wheels bring CUDA's libraries; the host brings the driver (docker run --gpus all).
FROM python:3.11-slim
WORKDIR /opt/correction_trl
# Triton, which compiles kernels for bitsandbytes and torch.compile, needs a C compiler
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY . .
RUN pip install --no-cache-dir -c constraints.txt '.[rewards,human]' && useradd --create-home user
USER user
WORKDIR /home/user
ENTRYPOINT ["correction-trl"]
