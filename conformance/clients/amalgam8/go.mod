module example.org/registry-client

go 1.19
