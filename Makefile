# make train    set up, get the data, train the default config (five minutes on two cores)
# make test     set up, get the data, run the tests of every day
# make lint     style, types, import direction, spelling
# make slow     the tests that take minutes: whole evaluations, several processes, the launchers
# make soak     kill runs, fail writes, feed nonsense and compile for an hour; update the tables in docs/
# make gpu      the tests that need a GPU, and the speeds on it; six minutes
# make smoke    hashes of samples and of a short training, which a refactor leaves equal
# make package  build the wheel, and try it in an empty environment
# make speedrun train configs/speedrun.yaml: is it at a distance of 0.25 in its time? SEEDS=3 for the leaderboard
# make pictures make the pictures of docs/sampling.md again
# make ship     NAME=teacher RUN=runs/fashion_mnist_long: put a run's pipeline into the package, with its sums
PYTHON ?= python3
RUN ?= runs/fashion_mnist
SEEDS ?= 1
BIN := .venv/bin
RAW := data/FashionMNIST/raw
PACKAGE := dataset-fashion-mnist

.PHONY: train test lint slow soak gpu smoke package speedrun pictures ship data clean

train: .venv/installed data
	@$(BIN)/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	    scripts/train.py --config configs/fashion_mnist.yaml --output_dir $(RUN)

TESTS = PYTHONWARNDEFAULTENCODING=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: .venv/installed data
	$(TESTS) -m "not slow" tests/faults tests/pipelines tests  # the longest first

slow: .venv/installed data
	$(TESTS) -m slow tests/scripts tests

gpu: .venv/installed data
	PYTHON=$(BIN)/python tests/gpu/run.sh

lint: .venv/installed
	PATH=$$PWD/$(BIN):$$PATH $(BIN)/pre-commit run --all-files

smoke: .venv/installed data
	@folder=$$(mktemp -d) && $(BIN)/python scripts/train.py --config configs/smoke.yaml --tracking.mode disabled \
	    --output_dir $$folder/run >$$folder/log 2>&1 && for name in teacher student; do \
	    $(BIN)/python scripts/sample.py --pipeline $$name --output $$folder/$$name.png >>$$folder/log || exit 1; done && \
	    (cd $$folder && sha256sum *.png run/samples/*.png run/pipeline/unet/*.safetensors run/checkpoints/*/*.safetensors) \
	    || cat $$folder/log; rm -rf $$folder

package: .venv/installed data
	rm -rf build dist && $(BIN)/python -m build --wheel && tests/package.sh $(PYTHON) dist/*.whl data

soak: .venv/installed data
	noted=$$(mktemp) && SOAK=1 RELIABILITY=$$noted OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 \
	    --hypothesis-seed $${SOAK_SEED:-0} tests/faults tests/scripts/test_bad_input.py tests/denoiser/test_environment.py tests/denoiser/test_compilers.py && $(BIN)/python -m tests.reliability $$noted; \
	    status=$$?; rm -f $$noted; exit $$status

speedrun: .venv/installed data
	$(BIN)/python scripts/benchmark.py speedrun --seeds $(SEEDS) --output_dir runs/speedrun

pictures: .venv/installed data
	rm -rf runs/boots runs/denoised_boots
	. $(BIN)/activate && grep '^python scripts/' docs/sampling.md | sh -ex

ship:
	@test -n "$(NAME)" && test -d $(RUN)/pipeline || { echo "give NAME, and a RUN that has a pipeline"; exit 2; }
	rm -rf pipelines/weights/$(NAME) && mkdir -p pipelines/weights && cp -r $(RUN)/pipeline pipelines/weights/$(NAME)
	sed -e 's/import load_pipeline, make_scheduler/import load_pretrained/' -e '/^pipeline.scheduler = /d' \
	    -e 's/load_pipeline("pipeline")/load_pretrained("$(NAME)")/' $(RUN)/pipeline/README.md \
	    > pipelines/weights/$(NAME)/README.md
	cd pipelines/weights/$(NAME) && files=$$(find * -type f | LC_ALL=C sort) && sha256sum $$files > SHA256SUMS

.venv/installed: pyproject.toml
	@$(PYTHON) -m venv .venv || { echo "python3 -m venv failed; on Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

# Debian's package, without root where its package lists exist; elsewhere training downloads the files itself.
data:
	@if [ ! -e $(RAW)/train-images-idx3-ubyte.gz ] && [ ! -d /usr/share/datasets/fashion-mnist ]; then \
	    folder=$$(mktemp -d); here=$$PWD; \
	    if cd $$folder && { apt-get download $(PACKAGE) || { apt-get update && apt-get download $(PACKAGE); }; } \
	            >log 2>&1 && dpkg -x $(PACKAGE)_*.deb .; then \
	        mkdir -p $$here/$(RAW) && cp usr/share/datasets/fashion-mnist/*.gz $$here/$(RAW); \
	    else \
	        echo "no Debian package $(PACKAGE) here; the files will be downloaded from torchvision's mirrors"; \
	    fi; \
	    rm -rf $$folder; \
	fi

clean:
	rm -rf .venv build *.egg-info
