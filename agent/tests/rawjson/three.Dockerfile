FROM scratch AS unused
COPY README /unused
FROM --platform=$BUILDPLATFORM busybox AS Tools
RUN echo tools
FROM busybox:latest
WORKDIR /w
WORKDIR sub
RUN ["echo", "json form"]
COPY --from=tools /bin/sh /tools/sh
COPY --from=other /bin/ls /other/ls
copy README /r
