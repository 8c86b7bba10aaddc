(view) => {
  document.documentElement.dataset.view = view;
  try { localStorage.setItem('likeness-view', view); } catch {}
}
