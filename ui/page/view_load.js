() => {
  let view = new URLSearchParams(location.search).get('view');
  try { view = view || localStorage.getItem('likeness-view'); } catch {}
  view = view === 'research' ? 'research' : 'portrait';
  document.documentElement.dataset.view = view;
  return view;
}
