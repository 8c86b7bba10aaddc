const localise = () => element.querySelectorAll('time').forEach((time) => {
  const when = new Date(time.dateTime), today = when.toDateString() === new Date().toDateString();
  time.textContent = today ? when.toLocaleTimeString([], {hour: '2-digit', minute: '2-digit'})
    : when.toLocaleDateString([], {day: 'numeric', month: 'short'});
});
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-job]');
  if (button) trigger('click', {job: Number(button.dataset.job)});
});
watch('value', localise);
localise();
