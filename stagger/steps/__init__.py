"""The readers and writers that ship with stagger. A step's module is imported when a pipeline names the step."""
