"""The map of the house. Read upward it is the field itself: noise, families of models, their files, a pipeline, an engine, faces.

                                      launch.py
              webui/ (tabs, parts, api)          modules/cli/
                                   modules/client.py
               modules/engine.py  modules/errands.py  modules/extension_loader.py
                          modules/jobs/    modules/demo/
                                   modules/pipeline/
                                   modules/adapters/
                                 modules/checkpoints/
                       modules/families/    modules/prompts/
                       modules/sampling/    modules/imaging/
                       modules/networks/    modules/core/

A room imports from the floors below it and from itself; two rooms of one floor do not meet. tests/test_house.py keeps this true.
Extensions are no room: they lie in extensions/ (the user's) and modules/extensions-builtin/, and come in by modules/pipeline/extension.py.
To follow one picture through the house, begin with modules/pipeline/generate.py.
"""
