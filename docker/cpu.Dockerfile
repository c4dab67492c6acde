# From the top of the repository: docker build -f docker/cpu.Dockerfile -t correction-trl:cpu .
FROM python:3.11-slim
WORKDIR /opt/correction_trl
COPY . .
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt '.[rewards,human]' \
    && useradd --create-home user
USER user
WORKDIR /home/user
ENTRYPOINT ["correction-trl"]
