"""The steps that ship with stagger: readers and writers. A step's module is imported when a pipeline names it."""
