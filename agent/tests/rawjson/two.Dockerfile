FROM busybox AS base
RUN echo base
FROM base AS a
COPY src /s
RUN touch /a
FROM base
ARG DEST=/dst
ARG FILE=README
COPY --from=a /a /a
COPY --from=busybox /bin/sh /xx/sh
COPY $FILE $DEST/
RUN --mount=type=bind,source=include,target=/i cat /i/b.h
ADD --chmod=644 src/a.c /x
ONBUILD RUN true
