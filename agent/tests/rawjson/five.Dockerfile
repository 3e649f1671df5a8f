FROM scratch
COPY . /
COPY README /again
