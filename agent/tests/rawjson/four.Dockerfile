FROM other AS only
ENV A=b
COPY . .
RUN true
SHELL ["/bin/ash", "-c"]
