# GPU image: vLLM's own, with kvserve beside it. Build: docker build -t kvserve .
# Run: docker run --gpus all --ipc=host -p 8000:8000 kvserve [MODEL] [vllm serve flags]; without both the mini model
FROM vllm/vllm-openai:v0.32.0

LABEL org.opencontainers.image.title="kvserve" \
      org.opencontainers.image.description="vLLM with a KV-cache compression policy per request" \
      org.opencontainers.image.licenses="Apache-2.0"

COPY . /opt/kvserve
# vLLM is in the image; only our own package and what it needs beside is added.
RUN python3 -m pip install --no-cache-dir "/opt/kvserve[vision,models]" && rm -rf /opt/kvserve \
    && useradd --create-home --uid 10001 kvserve

USER kvserve
WORKDIR /home/kvserve
ENV VLLM_USE_V2_MODEL_RUNNER=0
EXPOSE 8000
HEALTHCHECK --start-period=600s --interval=30s --timeout=5s \
    CMD python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"
ENTRYPOINT ["kvserve", "serve", "--host", "0.0.0.0"]
# A container starts without downloads, unless told otherwise.
CMD ["mini"]
