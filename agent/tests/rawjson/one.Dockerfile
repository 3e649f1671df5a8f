# syntax comment
ARG BASE=busybox
FROM --platform=$TARGETPLATFORM ${BASE} AS builder
ARG MODE=dev
ENV X=$MODE
WORKDIR /app
COPY --chown=1:1 src/*.c include/ ./
RUN echo $MODE \
   && echo "two"
RUN <<EOF
echo heredoc
echo more $MODE
EOF
COPY <<"EOT" <<two /files/
hello $MODE
EOT
second $MODE
two
FROM debian:13-slim
COPY ["README", "/with space"]
COPY --from=builder /app /app
COPY link/ /l/
USER 1
LABEL v=$MODE
EXPOSE 80
CMD ["true"]
