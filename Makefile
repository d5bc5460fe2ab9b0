# What one does here, as a table of contents.
.PHONY: demo test lint format docs bench

demo:            ## the full pipe on docs/examples
	bin/demo

test:            ## all tests
	bin/test

lint:            ## style, lint, types
	bin/setup dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

format:          ## put the style right
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

docs:            ## docs/cli.md, docs/python.md, docs/scorers.md and docs/record.schema.json, made from the code
	.venv/bin/python -m blendkit.documentation

bench:           ## what docs/performance.md shows
	bin/bench pair
	bin/bench schedules
	bin/bench score
