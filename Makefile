# make demo and make test each set up everything they need on a bare Debian 12; see README.md.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup configure build all data8 demo test test-long python-package bench-programs bench bench-peers clean

program := build/release/switchyard
data8 := data/mix8
# A file that includes torch needs about 1.5 GB to compile: with little memory, fewer at a time.
memory_jobs := $(shell awk '/MemAvailable/ { jobs = int($$2 / 2000000); print jobs < 1 ? 1 : jobs }' /proc/meminfo)
jobs ?= $(shell cores=$$(nproc); echo $$((cores < $(memory_jobs) ? cores : $(memory_jobs))))
demo_arguments ?=

help:
	@echo "make demo       set-up, build, data, seven ways of training compared, one HTML report"
	@echo "make test       set-up, build, all quick tests"
	@echo "make test-long  sanitizers, clang-tidy, header checks, slow tests"
	@echo "make setup      system packages (apt), .venv, PyTorch"
	@echo "make build      the program: $(program)"
	@echo "make data8      the 8-domain data set, once: $(data8)"
	@echo "make python-package  the PyTorch package, into build/release/python_site"
	@echo "make bench      benchmarks; bench-programs builds them only"
	@echo "make bench-peers shape=ii   training steps beside Hugging Face's, into bench/results/"
	@echo "make clean      removes build/ (not data/, runs/, .venv/)"

setup:
	@tools/setup.sh

configure: setup
	@log=$$(mktemp); cmake --preset release -Wno-dev >"$$log" 2>&1 || { cat "$$log"; rm -f "$$log"; exit 1; }; rm -f "$$log"

build: configure
	@cmake --build --preset release --target switchyard -j $(jobs)
	@echo "built: $(program)"

all: configure
	@cmake --build --preset release -j $(jobs)

data8: build
	@test -f $(data8)/manifest.json || $(program) data build --preset mix8 --out $(data8)

demo: data8
	@$(program) testbed configs/testbed/demo.toml $(demo_arguments)

test: all
	@ctest --preset release -LE slow -j $(jobs)

test-long: all
	@tools/test_long.sh $(jobs)

# The tests make it so too: docs/python.md says how to install it for yourself.
python-package: configure
	@ctest --preset release -R '^python_package_install$$' --output-on-failure

bench-programs: configure
	@cmake --build --preset release --target step_bench decoder_bench kernels_bench balance_bench comm_bench -j $(jobs)

bench: bench-programs
	@build/release/bench/kernels_bench
	@build/release/bench/decoder_bench

shape ?= ii
peers_arguments ?=
peers_venv := build/peers-venv

$(peers_venv)/stamp: bench/peers/requirements.txt
	@python3 -m venv $(peers_venv)
	@$(peers_venv)/bin/pip install --quiet -r bench/peers/requirements.txt
	@touch $@

bench-peers: configure $(peers_venv)/stamp
	@cmake --build --preset release --target step_bench -j $(jobs)
	@$(peers_venv)/bin/python bench/peers/compare.py --program build/release/bench/step_bench --shape $(shape) $(peers_arguments)

clean:
	rm -rf build
